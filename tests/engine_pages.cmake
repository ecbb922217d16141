# engine: who owns a page, which tokens it holds, and how a token is drawn.
baton_test(unit/eng_pool engine)
baton_test(unit/eng_prefix engine)
baton_test(unit/eng_sampler engine m)
