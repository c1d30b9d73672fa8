"""The commands of `python -m trainer` that need hooks, which `trainer` itself knows nothing of."""
