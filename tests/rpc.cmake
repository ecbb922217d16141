# rpc/ over real loopback sockets.
baton_test(unit/rpc_loop rpc)
baton_test(unit/rpc_message rpc PkgConfig::GRPC) # sees the internal header
baton_test(unit/rpc_call rpc)
baton_test(unit/rpc_server rpc PkgConfig::GRPC)  # likewise
baton_test(unit/rpc_client rpc)
baton_test(unit/rpc_reflection rpc)
baton_test(unit/rpc_pem rpc PkgConfig::GRPC)     # likewise
baton_test(unit/rpc_tokens rpc PkgConfig::GRPC)  # likewise
baton_test(unit/rpc_security rpc)
