"""The machine around a run: files, processes, signals, time spans, and what is printed."""
