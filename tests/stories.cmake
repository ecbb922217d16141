# Cluster stories: real processes, driven by Python (tests/cluster/harness.py). tests/run.sh makes the venv.
set(PYTHON ${CMAKE_SOURCE_DIR}/build/venv/bin/python)

function(baton_story name)
  add_test(NAME cluster/${name}
    COMMAND ${PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/cluster/${name}.py --baton $<TARGET_FILE:baton> --model ${BATON_MODEL} ${ARGN})
  # Stories load both cores; side by side they would only slow each other down.
  set_tests_properties(cluster/${name} PROPERTIES TIMEOUT 900 RUN_SERIAL TRUE LABELS "threads;story")
endfunction()

baton_story(first_answer)
baton_story(same_bytes)
if(SANITIZE STREQUAL "")
  baton_story(cancel --count 2000)
else()
  baton_story(cancel --count 200)
endif()
baton_story(zombie)
baton_story(bad_input)
baton_story(overload)
baton_story(stranger)
