"""One start, from nothing to the end of the first epoch: what `start_up` runs in new processes.

    python benchmarks/_first_epoch.py library [CACHE]
    python benchmarks/_first_epoch.py resumed CACHE

It prints the seconds of each part as JSON. `CACHE` is the directory of the compilation cache; the
second resumes a run in its folder.
"""

import itertools
import json
import sys
import time

BATCH_SIZE, RATE = 64, 1e-3


def library(cache, run=None):
    """Start with the library; compiling is what `fit` takes beyond its first epoch."""
    yield "import"
    import jax
    import optax

    import hooks
    import models
    import trainer
    from trainer import data, losses

    if cache:
        trainer.cache_compilations(cache)
    yield "data"
    source, _ = data.digits(batch_size=BATCH_SIZE)
    yield "init"
    network = models.mlp(classes=10)
    task = trainer.supervised(network, losses.classification, optax.adamw(RATE))
    state = jax.block_until_ready(task.init(jax.random.key(0), source.example))
    yield "compile"
    phase = trainer.training(task.step, source)
    saving, epochs = (), 1
    if run:
        saving = hooks.save_checkpoints(run, max_cost=None)
        epochs += trainer.Checkpoints(run, read_only=True).latest() or 0
    state, (metrics,) = trainer.fit(state, phase, epochs=epochs, hooks=saving)
    jax.block_until_ready(state)
    yield "first epoch", metrics["time/epoch_seconds"]


def resumed(cache):
    """Go on with a run, an epoch further; compiling is then restoring too."""
    return library(cache, run=f"{cache}/run")


def metrics(cache):
    """Start with a phase that reports 2,000 metrics."""
    yield "import"
    import jax
    import jax.numpy as jnp

    import trainer

    if cache:
        trainer.cache_compilations(cache)
    yield "data"
    yield "init"
    state = trainer.TrainState.create(params=jnp.arange(64.0), rng=jax.random.key(0))
    yield "compile"

    def measure(state, data):
        numbers = {f"metric_{i:04}": state.params[i % 64] * i for i in range(2_000)}
        return state.replace(params=state.params + 1), None, numbers

    state, (found,) = trainer.fit(state, trainer.Phase("train", measure), epochs=1)
    jax.block_until_ready(state)
    yield "first epoch", found["time/epoch_seconds"]


def bare(cache):
    """Start without it: the same network, optimizer, data and cache."""
    yield "import"
    import _bare
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import models

    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield "data"
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)[:1437]
    arrays = {"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels[:1437], jnp.int32)}
    yield "init"
    network, optimizer = models.mlp(classes=10), optax.adamw(RATE)
    first = arrays["inputs"][:BATCH_SIZE]
    state = jax.block_until_ready(_bare.init(network, optimizer, jax.random.key(0), first))
    yield "compile"
    epoch = _bare.one_scan(network, optimizer, len(inputs), BATCH_SIZE)
    key = jax.random.key(1)
    compiled = epoch.lower(state, arrays, key, 0).compile()
    began = time.perf_counter()
    state, loss = compiled(state, arrays, key, 0)
    float(loss)
    jax.block_until_ready(state)
    yield "first epoch", time.perf_counter() - began


def main():
    starts = {"library": library, "resumed": resumed, "metrics": metrics, "bare": bare}
    start, cache = starts[sys.argv[1]], (sys.argv[2:] or [None])[0]
    marks = [(mark, time.perf_counter()) for mark in start(cache)]
    last, seconds = marks[-1][0]
    pairs = itertools.pairwise(marks)
    taken = {part: after - before for (part, before), (_, after) in pairs}
    taken["compile"] -= seconds
    print(json.dumps({**taken, last: seconds}))


if __name__ == "__main__":
    main()
