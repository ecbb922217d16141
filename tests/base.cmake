# base: the vocabulary.
baton_test(unit/base_address base)
baton_test(unit/base_status base)
baton_test(unit/base_memory base)
baton_test(unit/base_log base)
baton_test(unit/base_mailbox base)
baton_test(unit/base_config base)
baton_test(unit/base_metrics base m)
fuzz_target(config_yaml base)

# Each public header compiles alone, as C11 and as C++17, with the strictest flags. Headers of
# generated messages are found in the build folder (build first), other libraries' are system headers.
find_program(BATON_CXX NAMES c++ g++ clang++)
set(header_flags -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I ${CMAKE_SOURCE_DIR} -I ${CMAKE_BINARY_DIR})
foreach(dir ${PROTOBUFC_INCLUDE_DIRS} ${GRPC_INCLUDE_DIRS})
  list(APPEND header_flags -isystem ${dir})
endforeach()
foreach(header base/base.h engine/engine.h kvtransfer/kvtransfer.h collective/collective.h rpc/rpc.h http/http.h cluster/cluster.h
               coordinator/coord.h node/node.h)
  add_test(NAME header/c11/${header} COMMAND ${CMAKE_C_COMPILER} -x c -std=c11
           -Wstrict-prototypes ${header_flags} ${CMAKE_SOURCE_DIR}/${header})
  if(BATON_CXX)
    add_test(NAME header/c++17/${header} COMMAND ${BATON_CXX} -x c++ -std=c++17 ${header_flags}
             ${CMAKE_SOURCE_DIR}/${header})
  endif()
endforeach()
