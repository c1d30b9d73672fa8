"""What the contestants train on: arrays, sizes and the optimizer; it imports no trainer."""

from typing import Any, NamedTuple

import numpy as np
from _ppo_settings import DEFAULTS, MANY, QUICK, SOLVING, Settings

TEXT, TWO_THOUSAND = "transformer", "2,000 steps"
PPO = {"PPO, 8 envs": DEFAULTS, "PPO, 16 envs": SOLVING, "PPO, 128 envs": MANY}
UNITS = {"MLP": "steps/s", "CNN": "steps/s", TEXT: "tokens/s"} | dict.fromkeys(PPO, "env steps/s")


class Size(NamedTuple):
    """Of a transformer."""

    vocabulary: int
    context: int = 64
    layers: int = 4
    heads: int = 4
    width: int = 128


class AdamW(NamedTuple):
    """Hyperparameters, as `optax.adamw(1e-3)` has them; the others' own defaults differ."""

    rate: Any = 1e-3
    """A float, or float32 `[steps]`, one for each step."""
    beta2: float = 0.999
    decay: float = 1e-4
    epsilon: float = 1e-8
    clip_norm: float | None = None


class Workload(NamedTuple):
    """A classification: of images, or of the token after each."""

    network: str
    """`MLP`, `CNN` or `transformer`."""
    arrays: dict
    """`inputs`, float32 `[examples, 8, 8, 1]` or int32 `[examples, context]`, and `labels`."""
    batch_size: int
    size: Size | None = None
    optimizer: AdamW = AdamW()
    held_out: dict | None = None
    """Arrays on which `run` reports the mean loss after training."""

    @property
    def steps(self):
        """Of an epoch."""
        return len(self.arrays["labels"]) // self.batch_size


def load(race, *, quick):
    """Return the workload of a race; `quick` is small."""
    if race in PPO:
        return QUICK if quick else PPO[race]
    if race in ("MLP", "CNN"):
        return load_digits(race, batches=2 if quick else 22)
    if race == TWO_THOUSAND:
        return as_nanogpt(load_text(steps=2000, batch_size=12, shape={}))
    small = {"context": 8, "layers": 1, "width": 16}
    text = load_text(steps=10, batch_size=12, shape=small if quick else {})
    return text._replace(held_out=None)


def count(race, workload):
    """Return how many units, as `UNITS` names them, an epoch has."""
    if isinstance(workload, Settings):
        return workload.envs * workload.steps
    if race in (TEXT, TWO_THOUSAND):
        return workload.steps * workload.batch_size * workload.size.context
    return workload.steps


def load_digits(network, *, batches):
    """Load scikit-learn's digits: whole batches of 64."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    places = np.random.default_rng(0).permutation(len(labels))[: 64 * batches]
    inputs = (images[places].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    return Workload(network, {"inputs": inputs, "labels": labels[places].astype(np.int32)}, 64)


def load_text(*, steps, batch_size, shape):
    """Draw windows of characters from the standard library's help texts, a tenth of it held out."""
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))  # topics repeat each other
    characters, tokens = np.unique(np.array([*text]), return_inverse=True)
    size = Size(len(characters), **shape)
    border = len(tokens) * 9 // 10

    def cut(starts):
        windows = tokens[starts[:, None] + np.arange(size.context + 1)].astype(np.int32)
        return {"inputs": windows[:, :-1], "labels": windows[:, 1:]}

    last = border - size.context - 1
    drawn = np.random.default_rng(0).integers(0, last, steps * batch_size)
    held_out = np.arange(border, len(tokens) - size.context - 1, size.context)
    whole = len(held_out) // batch_size * batch_size
    return Workload(TEXT, cut(drawn), batch_size, size, held_out=cut(held_out[:whole]))


def as_nanogpt(workload):
    """Set the optimizer that nanoGPT's README proposes for a CPU: warm-up, cosine, clipping."""
    step = np.arange(workload.steps)
    progress = np.clip((step - 100) / (workload.steps - 100), 0, 1)
    rates = np.where(step < 100, (step + 1) / 101, 0.1 + 0.45 * (1 + np.cos(np.pi * progress)))
    rate = (1e-3 * rates).astype(np.float32)
    return workload._replace(optimizer=AdamW(rate, beta2=0.99, decay=0.1, clip_norm=1.0))
