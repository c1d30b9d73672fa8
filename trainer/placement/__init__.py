"""Where a state lies: meshes of devices, rules that split leaves, and constraints while tracing."""
