# The model side of engine/: file, weights, pages, forward pass.
baton_test(unit/eng_gguf engine)
baton_test(unit/eng_model engine)
baton_test(unit/eng_step engine m)
baton_test(unit/eng_kv engine)
baton_test(unit/eng_ops engine m)
baton_test(golden/logits engine m PkgConfig::JANSSON)
fuzz_target(gguf engine)
