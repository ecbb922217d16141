baton_test(unit/collective collective base)
