"""Weights in the directories of the Hugging Face hub: read, and written."""
