"""Flax NNX, batch by batch, as its own pages train: a compiled step over a module and an optimizer.

Usual: `nnx.jit`. Fastest: `nnx.cached_partial`, which takes module and optimizer apart only once.
"""

import jax
import numpy as np
import optax
from flax import nnx

from contestants.workloads import TEXT
from models.cnn import CNN
from models.language.blocks import TransformerConfig
from models.language.text_decoder import TextDecoder
from models.mlp import MLP


def build(workload):
    """Build the module: ours are of Flax NNX."""
    rngs = nnx.Rngs(0)
    if workload.network == "MLP":
        return MLP((64, 128, 128, 10), dropout=0.0, rngs=rngs)
    if workload.network == TEXT:
        size = workload.size
        width = size.width
        shape = TransformerConfig("Flax", size.layers, size.heads, width, 4 * width, 0.0, False)
        return TextDecoder(size.vocabulary, size.context, shape, tied=True, rngs=rngs)
    settings = {"channels": (32, 64), "hidden": 128, "batch_norm": False, "dropout": 0.0}
    return CNN((8, 8, 1), classes=10, **settings, rngs=rngs)


def usual(workload):
    """Train with `nnx.jit`."""
    return loop(
        workload, lambda step, model, optimizer: lambda *batch: step(model, optimizer, *batch)
    )


def cached(workload):
    """Train with `nnx.cached_partial`."""
    return loop(workload, nnx.cached_partial)


def loop(workload, bind):
    """Build `run`; `bind(step, model, optimizer)` gives a function of a batch."""
    model = build(workload)
    settings = workload.optimizer
    rule = optax.adamw(settings.rate, weight_decay=settings.decay, eps=settings.epsilon)
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    shuffling = np.random.default_rng(0)
    inputs, labels = workload.arrays["inputs"], workload.arrays["labels"]

    @nnx.jit
    def step(model, optimizer, inputs, labels):
        def objective(model):
            logits = model(inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = nnx.value_and_grad(objective)(model)
        optimizer.update(model, grads)
        return loss

    take = bind(step, model, optimizer)

    def run(epochs):
        for _ in range(epochs):
            order = shuffling.permutation(len(labels)).reshape(-1, workload.batch_size)
            losses = [take(inputs[places], labels[places]) for places in order]
            float(np.mean(jax.device_get(losses)))
        jax.block_until_ready(nnx.state((model, optimizer)))

    return run
