# node, prefill-node, decode-node: the core and both roles with a fake engine and a fake link.
baton_test(unit/node_batch node)
baton_test(unit/node_core prefill-node decode-node)
baton_test(unit/prefill_prefill prefill-node decode-node)
baton_test(unit/decode_decode prefill-node decode-node)
baton_test(unit/node_process prefill-node decode-node)
