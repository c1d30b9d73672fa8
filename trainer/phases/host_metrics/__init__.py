"""Metrics of a phase as they arrive on the host: pending, reduced, collected."""
