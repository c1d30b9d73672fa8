"""How commands find stores, runs and checkpoints."""
