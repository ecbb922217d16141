# http: what operators ask.
baton_test(unit/http_server http Threads::Threads)
set_tests_properties(unit/http_server PROPERTIES LABELS threads)
