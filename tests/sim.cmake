# sim: a cluster in one process, driven by a seed. What fails says how to see it again.
add_library(sim_objects OBJECT sim/sim.c sim/client.c sim/coordinator.c sim/node.c sim/transfer.c
            sim/speculator.c sim/fault.c)
set(sim_libraries coord_core decode-node prefill-node node kvtransfer engine base)
target_link_libraries(sim_objects PUBLIC ${sim_libraries})
add_executable(sim $<TARGET_OBJECTS:sim_objects>)
target_link_libraries(sim PRIVATE ${sim_libraries})

if(SANITIZE STREQUAL "")
  set(sim_seeds 20000)
else()
  set(sim_seeds 1000)
endif()
add_test(NAME sim/seeds COMMAND sim --seeds 1 ${sim_seeds})
set_tests_properties(sim/seeds PROPERTIES TIMEOUT 120)

# 1,000,000 seeds in --long, in parts that run beside each other: 5 minutes of one core in all.
if(SANITIZE STREQUAL "")
  foreach(part RANGE 0 3)
    math(EXPR from "20001 + 250000 * ${part}")
    add_test(NAME sim/long_${part} COMMAND sim --seeds ${from} 250000)
    set_tests_properties(sim/long_${part} PROPERTIES TIMEOUT 1200 LABELS long)
  endforeach()
endif()

# A planted bug may abort or corrupt memory on purpose: these two run without sanitizers only.
if(SANITIZE STREQUAL "")
  add_test(NAME sim/bugs COMMAND sim --bugs 5000)
  list(TRANSFORM sim_libraries REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE sim_archives)
  add_test(NAME sim/mutants
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/sim/mutants.sh ${CMAKE_SOURCE_DIR}
            ${CMAKE_CURRENT_BINARY_DIR}/mutants 20000 ${CMAKE_C_COMPILER}
            $<TARGET_OBJECTS:sim_objects> ${sim_archives} ${XXHASH_LINK_LIBRARIES} ${CRYPTO_LINK_LIBRARIES} -lm -pthread
    COMMAND_EXPAND_LISTS)
  set_tests_properties(sim/bugs sim/mutants PROPERTIES TIMEOUT 300)
endif()
