"""Conversations as data: JSON lines, chat templates, tokens and packed rows."""
