baton_test(unit/cluster_registry cluster)
baton_test(unit/cluster_view cluster)
set_tests_properties(unit/cluster_view PROPERTIES LABELS threads)
