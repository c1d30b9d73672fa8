"""The machine around a run: files, processes, signals, clocks, and what is printed."""
