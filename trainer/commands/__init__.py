"""The commands of `python -m trainer`: a file each, and what they share."""
