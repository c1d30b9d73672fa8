"""Build hooks from the names in a configuration file."""
