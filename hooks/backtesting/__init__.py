"""Run hooks again over a recorded run."""
