"""CoOp, learned prompts."""
