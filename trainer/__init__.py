"""Training as jitted pure functions over an immutable state, with hooks between epochs."""

from trainer.state import TrainState, fingerprint

__all__ = ["TrainState", "fingerprint"]
