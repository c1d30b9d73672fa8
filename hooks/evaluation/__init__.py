"""Hooks that evaluate, in this process or by a remote evaluator."""
