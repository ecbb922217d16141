baton_test(unit/coord_service_text coordinator)
baton_test(unit/coord_service_check coordinator)
# These run the executable itself.
baton_test(unit/cli_usage base)
target_compile_definitions(test_unit_cli_usage PRIVATE BATON="$<TARGET_FILE:baton>")
add_dependencies(test_unit_cli_usage baton)
baton_test(unit/cli_bench bench PkgConfig::JANSSON m)
target_compile_definitions(test_unit_cli_bench PRIVATE BATON="$<TARGET_FILE:baton>" TINY="${CMAKE_CURRENT_BINARY_DIR}/tiny.gguf")
add_dependencies(test_unit_cli_bench baton tiny_model)
baton_test(unit/bench_load bench m)
add_test(NAME readme/flags COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/readme_flags.sh $<TARGET_FILE:baton> ${CMAKE_SOURCE_DIR}/README.md)
if(SANITIZE STREQUAL "")
  add_test(NAME deploy/runtime_packages COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/runtime_packages.sh $<TARGET_FILE:baton>)   # sanitizers need more
  set_tests_properties(deploy/runtime_packages PROPERTIES SKIP_RETURN_CODE 77)
  add_test(NAME golden/perplexity COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/golden/perplexity.sh $<TARGET_FILE:baton>
           ${BATON_MODEL} ${CMAKE_CURRENT_SOURCE_DIR}/golden/gpl3-excerpt.txt)
  add_test(NAME golden/quantize COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/golden/quantize.sh $<TARGET_FILE:baton> ${BATON_MODEL})
  add_test(NAME golden/quantize_llama COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/golden/quantize_llama.sh $<TARGET_FILE:baton>
           ${BATON_MODEL} ${CMAKE_CURRENT_SOURCE_DIR}/golden/gpl3-excerpt.txt)
  set_tests_properties(golden/quantize_llama PROPERTIES SKIP_RETURN_CODE 77 LABELS long TIMEOUT 1800)
endif()
add_test(NAME unit/compare_llama COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/unit/compare_llama.py ${CMAKE_SOURCE_DIR})
add_test(NAME unit/compare_serving COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/unit/compare_serving.py ${CMAKE_SOURCE_DIR})
