"""Hooks run again over a recorded run."""
