# base: the vocabulary.
baton_test(unit/base_metrics base)
baton_test(unit/base_config base)
