"""Supervised learning: the task, its gradients, its optimizer, and tools that examine them."""
