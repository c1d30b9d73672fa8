"""Hooks that change training: stop it, schedule it, average it, roll it back."""
