"""Phases: how a step or a measure becomes a compiled function of a whole epoch."""
