"""A study: one file that says what to prepare, train, compare and report, and the steps that do it."""
