# node, prefill-node, decode-node: the core and both roles with a fake engine and a fake link.
baton_test(unit/node_batch node)
baton_test(unit/node_cost node)
baton_test(unit/node_schedule prefill-node decode-node)
baton_test(unit/node_core prefill-node decode-node)
baton_test(unit/prefill_prefill prefill-node decode-node)
baton_test(unit/decode_decode prefill-node decode-node)
baton_test(unit/decode_verify prefill-node decode-node)
baton_test(unit/decode_adapt decode-node)
baton_test(unit/decode_propose decode-node)
baton_test(unit/node_process prefill-node decode-node)
# A rank's end of a transfer is made to fail by these.
baton_test(unit/node_ranks prefill-node decode-node m)
target_link_options(test_unit_node_ranks PRIVATE -Wl,--wrap=kvt_promise -Wl,--wrap=kvt_send_open -Wl,--wrap=mailbox_wait)
