baton_test(unit/cluster_registry cluster)
baton_test(unit/cluster_view cluster)
baton_test(unit/cluster_view_numbers cluster)
baton_test(unit/cluster_etcd_address cluster)
baton_test(unit/cluster_etcd_registry cluster)
baton_test(unit/cluster_member cluster)
baton_test(unit/cluster_access cluster PkgConfig::GRPC) # sees rpc's internal header

