"""Look up what commands need: stores, runs, checkpoints, scores, and how this machine is."""
