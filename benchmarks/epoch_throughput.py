"""How many steps per second does the library reach, against bare JAX?

Baseline: the same network and optimizer in bare JAX (`_bare.py`), with the same shuffle on the
device, the state donated, and the mean loss read once an epoch: as one compiled scan an epoch, and
as one dispatch a step. The bar is held against the faster of the two.

Measured: scikit-learn's digits, batches of 64, AdamW; an MLP of two hidden layers and a CNN of two
blocks. A figure is one call that trains for as many epochs as take about a second, all its fixed
costs included, until loss and state are there. Contestants take turns; ratios are taken round by
round. `--gpu` takes fewer and shorter rounds.
"""

import functools
import math
import tempfile

import _bare
import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hooks
import models
import trainer
from trainer import data, losses

BATCH_SIZE = 64
LIBRARY, HOOKED = "library", "library + five hooks"
SCAN, DISPATCH = "bare JAX, one scan an epoch", "bare JAX, one dispatch a step"


def library(phase, start, make_hooks=tuple):
    """Train with `fit`; the phase is compiled once, whatever hooks there are."""

    def run(epochs):
        state, _ = trainer.fit(start, phase, epochs=epochs, hooks=make_hooks())
        jax.block_until_ready(state)

    return run


def five_hooks(directory):
    """Build hooks of everyday use; none does the network's work, as an evaluation would."""
    _, path = tempfile.mkstemp(suffix=".jsonl", dir=directory)

    def nothing(state, metrics):
        return state

    return hooks.chain(
        hooks.stop_early("train/loss", patience=10**6),
        hooks.stop_on_nan(),
        hooks.average_params(),
        hooks.log_metrics(hooks.JsonLines(path)),
        nothing,
    )


def bare(epoch, start, arrays):
    """Train in bare JAX, from the same parameters."""
    key = jax.random.key(1)
    first = _bare.State(start.params, start.opt_state, start.model_state)

    def run(epochs):
        state = jax.tree.map(jnp.copy, first)
        for number in range(epochs):
            state, loss = epoch(state, arrays, key, number)
            float(loss)
        jax.block_until_ready(state)

    return run


def entrants(network, source, directory):
    """Build `run(epochs)` of each, which returns when loss and state are there."""
    optimizer = optax.adamw(1e-3)
    task = trainer.supervised(network, losses.classification, optimizer)
    start = task.init(jax.random.key(0), source.example)
    phase = trainer.training(task.step, source)
    shape = network, optimizer, source.size, BATCH_SIZE
    return {
        LIBRARY: library(phase, start),
        HOOKED: library(phase, start, functools.partial(five_hooks, directory)),
        SCAN: bare(_bare.one_scan(*shape), start, source.arrays),
        DISPATCH: bare(_bare.one_dispatch_a_step(*shape), start, source.arrays),
    }


def long_enough(run, seconds):
    """Find how many epochs take this long, after compiling; two at least."""
    run(1)
    return max(2, math.ceil(seconds / _measuring.timed(lambda: run(1)))) if seconds else 2


def measure(network, source, *, rounds, seconds, directory):
    """Return the steps per second of each entrant, one figure a round."""
    steps = source.size // BATCH_SIZE
    contestants = {}
    for entrant, run in entrants(network, source, directory).items():
        epochs = long_enough(run, seconds)

        def rate(run=run, epochs=epochs):
            return epochs * steps / _measuring.timed(lambda: run(epochs))

        contestants[entrant] = rate
    return _measuring.interleaved(contestants, rounds=rounds)


def compare(name, samples):
    """Return the ratios of steps per second, and hold them to the bars."""
    fastest = max((SCAN, DISPATCH), key=lambda entrant: np.median(samples[entrant]))
    others = [entrant for entrant in samples if entrant not in (LIBRARY, HOOKED)]
    ratios = {f"library / {other}": (LIBRARY, other) for other in others}
    ratios["library / fastest bare"] = LIBRARY, fastest
    ratios["library + five hooks / fastest bare"] = HOOKED, fastest
    found = {
        what: _measuring.ratio(samples[one], samples[other])
        for what, (one, other) in ratios.items()
    }
    bars = [
        _measuring.bar(f"{name}: {what}", found[what]["median"], least=limit)
        for what, limit in (("library / fastest bare", 0.95), (f"library / {DISPATCH}", 1.0))
    ]
    return found, bars


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    rounds, seconds = (5, 0.5) if options.gpu else (15, 1.0)
    if options.quick:
        rounds, seconds = 1, 0.0
    source, _ = data.digits(batch_size=BATCH_SIZE)
    if options.quick:
        few = {name: array[: 2 * BATCH_SIZE] for name, array in source.arrays.items()}
        source = data.Arrays(few, BATCH_SIZE)
        networks = {"mlp": models.mlp(hidden=(8,)), "cnn": models.cnn(channels=(4,), hidden=8)}
    else:
        networks = {"mlp": models.mlp(classes=10), "cnn": models.cnn(classes=10)}
    measured, ratios, bars = {}, {}, []
    for name, network in networks.items():
        with tempfile.TemporaryDirectory() as directory:
            samples = measure(network, source, rounds=rounds, seconds=seconds, directory=directory)
        measured[name] = {entrant: _measuring.spread(f) for entrant, f in samples.items()}
        ratios[name], held = compare(name, samples)
        bars += held
        rows = [(e, *_measuring.columns(figures)) for e, figures in measured[name].items()]
        _measuring.show(f"{name}: steps per second", ("", "median", "quartiles"), rows)
        rows = [(what, *_measuring.columns(figures)) for what, figures in ratios[name].items()]
        _measuring.show(f"{name}: ratios", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "epoch_throughput",
        unit="steps/s",
        warm_up="compilation, an epoch, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
