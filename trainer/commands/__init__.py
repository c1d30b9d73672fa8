"""The commands of `entracte`: a file each, and what they share."""
