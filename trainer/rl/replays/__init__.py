"""Replays: episodes recorded, saved to files and reproduced."""
