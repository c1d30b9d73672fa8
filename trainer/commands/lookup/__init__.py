"""Find stores, runs and checkpoints for commands."""
