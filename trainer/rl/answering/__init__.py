"""Reinforcement of a language model's answers by a reward."""
