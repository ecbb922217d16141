# Cluster stories: real processes, driven by Python (tests/cluster/harness.py; tests/run.sh makes the
# venv). Under sanitizers they run on a tiny random model, and fewer.
set(PYTHON ${CMAKE_SOURCE_DIR}/build/venv/bin/python)
add_executable(tiny_model tiny_model.c)
target_link_libraries(tiny_model PRIVATE engine)

set(tiny_model ${CMAKE_CURRENT_BINARY_DIR}/tiny.gguf)
add_custom_command(TARGET tiny_model POST_BUILD COMMAND tiny_model ${tiny_model})

# baton_story(test-name script model flags...)
function(baton_story name script model)
  add_test(NAME cluster/${name}
    COMMAND ${PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/cluster/${script}.py --baton $<TARGET_FILE:baton> --model ${model} ${ARGN})
  # Stories load both cores; side by side they would only slow each other down.
  set_tests_properties(cluster/${name} PROPERTIES TIMEOUT 1800 RUN_SERIAL TRUE LABELS "threads;story"
    ENVIRONMENT "ASAN_OPTIONS=allocator_may_return_null=1;TSAN_OPTIONS=halt_on_error=1")
endfunction()

if(SANITIZE STREQUAL "")
  baton_story(first_answer first_answer ${BATON_MODEL})
  baton_story(same_bytes same_bytes ${BATON_MODEL})
  baton_story(same_bytes_tiny same_bytes ${tiny_model} --long-answer 1500)
  baton_story(cancel cancel ${tiny_model} --count 2000)
  baton_story(zombie zombie ${BATON_MODEL})
  baton_story(bad_input bad_input ${BATON_MODEL})
  baton_story(overload overload ${BATON_MODEL})
  baton_story(stranger stranger ${BATON_MODEL})
  baton_story(mixed mixed ${BATON_MODEL})
  baton_story(cancel_long cancel ${BATON_MODEL} --count 2000)
  set_tests_properties(cluster/cancel_long PROPERTIES LABELS "story;long")
else()
  # Long enough to be killed in the middle, at the speed of each sanitizer.
  set(long_answer_address 1000)
  set(long_answer_thread 400)
  baton_story(same_bytes same_bytes ${tiny_model} --long-answer ${long_answer_${SANITIZE}})
  baton_story(cancel cancel ${tiny_model} --count 100)
endif()
if(SANITIZE STREQUAL "address")
  baton_story(bad_input bad_input ${tiny_model})
endif()
