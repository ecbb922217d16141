# coordinator: the core's decisions (tests/sim drives it with everything else).
baton_test(unit/coord_core coord_core)
baton_test(unit/coord_request coord_core)
baton_test(unit/coord_hold coord_core)
baton_test(unit/coord_move coord_core)
baton_test(unit/coord_route coord_core m)
baton_test(unit/coord_cache coord_core)
baton_test(unit/coord_tenant coord_core)
baton_test(unit/coord_service_memory coordinator bench_middle)
