"""The trainers of the benchmark `peers`, a module for each library.

Each module is imported in a process of its own. A contestant is a function that takes a workload
and returns `run(epochs)`, which trains, and returns when all is computed: None, or a dict of
figures to report.
"""
