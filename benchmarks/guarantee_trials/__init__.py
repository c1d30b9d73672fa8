"""The trainers of the benchmark `guarantees`, a module for each, with its documented means.

Each module is imported in a process of its own, and has the functions that `_trial_process` calls:

- `train(trial)`: train, or resume what a killed process left in the trial's folder; return the step
  at which this process began, and the final parameters;
- `find_newest(folder)`: the newest checkpoint there, a file or a folder;
- `show_order(folder)`: whether a logger that is listed first records what a later callback decided,
  and whether the checkpoint holds it, whose callback is listed first as well;
- `test_callback()`: the smallest test of a callback of one's own;
- `prepare_epochs(epochs)`: a function that trains with so many callbacks that do nothing.
"""
