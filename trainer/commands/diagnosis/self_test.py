"""A self-test: a tiny training that resumes from a checkpoint must end with the same bits."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer import Checkpoints, fingerprint, fit, restore, supervised, training
from trainer.data import Arrays
from trainer.losses import classification
from trainer.runs.run import Run
from trainer.runs.store import Store

EPOCHS = 4
EXAMPLES, FEATURES, CLASSES = 256, 16, 4


def run_self_test() -> str:
    """Train, save, restore, continue, compare with an uninterrupted training, and record a loss.

    Returns:
        A summary.

    Raises:
        RuntimeError: bits differ, nothing was learned, or the recorded loss is missing.
    """
    task = supervised(_linear(), classification, optax.adam(3e-2))
    source = Arrays(_examples(), 32)
    phase = training(task.step, source)
    start = task.init(jax.random.key(0), source.example)
    whole, history = fit(start, phase, epochs=EPOCHS)
    with tempfile.TemporaryDirectory(prefix="entracte-doctor-") as folder:
        directory = f"{folder}/run"
        half, _ = fit(start, phase, epochs=EPOCHS // 2)
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(half)
            checkpoints.wait()
        resumed, _ = fit(restore(directory, start), phase, epochs=EPOCHS)
        if fingerprint(resumed) != fingerprint(whole):
            raise RuntimeError(
                f"a training restored after {EPOCHS // 2} of {EPOCHS} epochs does not end with the "
                "bits of an uninterrupted one: do not rely on resumed runs here"
            )
        losses = [epoch["train/loss"] for epoch in history]
        if not losses[-1] < losses[0]:
            raise RuntimeError(f"nothing was learned in {EPOCHS} epochs: losses {losses}")
        _record(directory, folder, losses[-1])
    return (
        f"{EPOCHS} epochs, a checkpoint restored, the same bits; loss {losses[0]:.3f} to "
        f"{losses[-1]:.3f}; a loss recorded"
    )


def _record(directory: str, folder: str, loss: float) -> None:
    """Record a value, and read it back."""
    run = Run(directory)
    run.record(EPOCHS, 0, {"train/loss": loss})
    run.close()
    with Store(folder, create=False) as store:
        recorded = [record.value for record in store.records(run.name, ["train/loss"])]
    if recorded != [loss]:
        raise RuntimeError(f"a loss of {loss} was recorded, but the store has {recorded}")


def _linear() -> Any:
    def init(key: jax.Array, inputs: jax.Array) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        return {"w": 0.1 * jax.random.normal(key, (FEATURES, CLASSES)), "b": jnp.zeros(CLASSES)}, {}

    def apply(params: Any, model_state: Any, inputs: jax.Array, *, key: Any, train: bool) -> Any:
        return inputs @ params["w"] + params["b"][None], model_state

    return SimpleNamespace(init=init, apply=apply)


def _examples() -> dict[str, np.ndarray]:
    """Draw clusters, one per class."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    centers = random.normal(size=(CLASSES, FEATURES))
    inputs = centers[labels] + 0.5 * random.normal(size=(EXAMPLES, FEATURES))
    return {"inputs": inputs.astype(np.float32), "labels": labels}
