"""Commits to be spoiled, and manifests that are forged as whoever can compute checksums would."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from trainer import Checkpoints, TrainState
from trainer.checkpoints import manifest


def make(epoch=1):
    """A state to save, with a memory of every kind of scalar."""
    state = TrainState.create(params={"w": jnp.arange(100.0) + epoch}, rng=jax.random.key(epoch))
    memory = {"h": {"best": 0.5, "n": 3, "name": "a", "rate": np.float32(1), "none": None}}
    return state.replace(epoch=jnp.int32(epoch), hook_state=memory)


def save(run, *epochs):
    """Commit states of these epochs, and give the folder of the commits."""
    with Checkpoints(run) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch), scores={"val/loss": 0.5}, config={"seed": 0})
    return run / "checkpoints"


def restore(run, **options):
    """Restore the newest intact commit."""
    with Checkpoints(run, read_only=True) as checkpoints:
        return checkpoints.restore(make(0), **options)


def read(commit):
    """What a commit says of itself."""
    return manifest.decode_manifest((commit / "manifest.json").read_bytes())


def forge(commit, content):
    """Make a commit say something else, with the right checksum."""
    (commit / "manifest.json").write_bytes(manifest.encode_manifest(content))
