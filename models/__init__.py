"""Networks as two pure functions."""
