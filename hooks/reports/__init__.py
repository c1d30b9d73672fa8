"""Reports, plots and charts of a run."""
