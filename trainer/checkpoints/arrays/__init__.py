"""Arrays of a state as bytes: copied piece by piece, stored, checked, and rebuilt."""
