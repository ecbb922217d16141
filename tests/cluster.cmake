baton_test(unit/cluster_registry cluster)
baton_test(unit/cluster_view cluster)

