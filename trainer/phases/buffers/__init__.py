"""The leaves of a state: which of them a phase may donate, and which it passes through."""
