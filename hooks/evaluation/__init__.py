"""Hooks that evaluate, here or by a remote evaluator."""
