"""The training loop: epochs of phases, and hooks between them."""
