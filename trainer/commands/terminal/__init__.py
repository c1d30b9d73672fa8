"""How commands are called, and how they print."""
