"""Hooks that run for each member of a population."""
