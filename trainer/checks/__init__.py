"""Checks of arguments, names and pytrees, and how their errors are worded."""
