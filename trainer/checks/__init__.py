"""Checks of arguments, names and pytrees, and the wording of their errors."""
