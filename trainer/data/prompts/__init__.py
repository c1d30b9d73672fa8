"""Prompts: texts, messages or tokens that a model continues, and what it wrote after them."""
