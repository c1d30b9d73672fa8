"""Hooks by name, as a configuration file lists them."""
