# engine/: tokenizer, detokenizer, chat template.
baton_test(unit/eng_vocab engine)
baton_test(unit/eng_detok engine)
baton_test(unit/eng_template engine PkgConfig::JANSSON)
baton_test(golden/tokens engine PkgConfig::JANSSON)
fuzz_target(tokenizer engine)
fuzz_target(template engine)
