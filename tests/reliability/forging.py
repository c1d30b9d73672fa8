"""Checkpoints to damage, and manifests forged by someone who can compute checksums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from trainer import Checkpoints, TrainState
from trainer.checkpoints import manifest


def make(epoch=1):
    """Return a state to save, with hook state of every kind of scalar."""
    state = TrainState.create(params={"w": jnp.arange(100.0) + epoch}, rng=jax.random.key(epoch))
    hook_state = {"h": {"best": 0.5, "n": 3, "name": "a", "rate": np.float32(1), "none": None}}
    return state.replace(epoch=jnp.int32(epoch), hook_state=hook_state)


def save(run, *epochs):
    """Save states of these epochs; return the folder of the checkpoints."""
    with Checkpoints(run) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch), scores={"val/loss": 0.5}, config={"seed": 0})
    return run / "checkpoints"


def restore(run, **options):
    """Restore the newest intact checkpoint."""
    with Checkpoints(run, read_only=True) as checkpoints:
        return checkpoints.restore(make(0), **options)


def read(checkpoint):
    """Read the manifest of a checkpoint."""
    return manifest.decode_manifest((checkpoint / "manifest.json").read_bytes())


def forge(checkpoint, content):
    """Replace the manifest of a checkpoint, with the right checksum."""
    (checkpoint / "manifest.json").write_bytes(manifest.encode_manifest(content))
