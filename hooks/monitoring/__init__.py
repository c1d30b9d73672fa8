"""Hooks that watch the machine, gradients and time."""
