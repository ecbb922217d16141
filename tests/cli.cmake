baton_test(unit/coord_service_text coordinator)
baton_test(unit/coord_service_check coordinator)
# These run the executable itself.
baton_test(unit/cli_usage base)
target_compile_definitions(test_unit_cli_usage PRIVATE BATON="$<TARGET_FILE:baton>")
add_dependencies(test_unit_cli_usage baton)
add_test(NAME readme/flags COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/readme_flags.sh $<TARGET_FILE:baton> ${CMAKE_SOURCE_DIR}/README.md)
if(SANITIZE STREQUAL "")
  add_test(NAME golden/perplexity COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/golden/perplexity.sh $<TARGET_FILE:baton>
           ${BATON_MODEL} ${CMAKE_CURRENT_SOURCE_DIR}/golden/gpl3-excerpt.txt)
endif()
