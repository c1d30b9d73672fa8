"""How many milliseconds does the loop take for an epoch, on one device and on eight?

Baseline: the same compiled epoch on the same arrays, called one after another in a loop of three
lines that waits for its metrics.

Measured: `trainer.fit` without hooks on a tiny network (two steps an epoch), on a CPU and on eight
virtual devices, data parallel. A figure is the time of one epoch, of a call that trains for fifty;
that of a call for one epoch is taken off first, so starting does not count. Contestants take turns.
"""

import functools

import _measuring
import jax
import numpy as np
import optax

import models
import trainer
from trainer import data, losses
from trainer.phases.buffers.state_buffers import copy_state
from trainer.state import strip_host_fields

DEVICES = {1: "1 device", 8: "8 devices"}
MOST = {1: 0.25, 8: 0.5}
"""Milliseconds of an epoch that the loop may take itself."""


def contestants(devices, epochs):
    """Return `run(epochs)` of the library and of the bare loop, for a state on so many devices."""
    rng = np.random.default_rng(0)
    arrays = {"inputs": rng.random((64, 8), np.float32), "labels": rng.integers(0, 10, 64)}
    source = data.Arrays(arrays, batch_size=32)
    task = trainer.supervised(models.mlp(hidden=(16,)), losses.classification, optax.sgd(0.1))
    start = task.init(jax.random.key(0), source.example)
    start = trainer.spread(start) if devices > 1 else start
    phase = trainer.training(task.step, source)
    state = strip_host_fields(start)
    ((piece, _),) = phase.pieces(state, None)
    program = phase.get_compiled(state, piece, donate=True)

    def library(epochs):
        after, _ = trainer.fit(start, phase, epochs=epochs)
        jax.block_until_ready(after.params)

    def bare(epochs):
        after = strip_host_fields(copy_state(start))
        for _ in range(epochs):
            after, _, packed = program.run(after, piece)
            np.asarray(packed)
        jax.block_until_ready(after.params)

    return {"library": _an_epoch(library, epochs), "bare": _an_epoch(bare, epochs)}


def _an_epoch(run, epochs):
    """Return the milliseconds of each epoch but the first."""

    def measure():
        one, all_of_them = (_measuring.timed(functools.partial(run, n)) for n in (1, epochs + 1))
        return (all_of_them - one) / epochs * 1e3

    return measure


def main():
    options = _measuring.arguments(__doc__).parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    rounds, epochs = (1, 20) if options.quick else (30, 50)
    made = {
        f"{name}, {who}": run
        for devices, name in DEVICES.items()
        for who, run in contestants(devices, epochs).items()
    }
    samples = _measuring.interleaved(made, rounds=rounds, warm_up=2)
    for name in DEVICES.values():
        pairs = zip(samples[f"{name}, library"], samples[f"{name}, bare"], strict=True)
        samples[f"{name}, beyond bare"] = [one - other for one, other in pairs]
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()}
    ratios = {
        f"{name}, library / bare": _measuring.ratio(
            samples[f"{name}, library"], samples[f"{name}, bare"]
        )
        for name in DEVICES.values()
    }
    rows = [(name, *_measuring.columns(figures)) for name, figures in measured.items()]
    _measuring.show("Milliseconds an epoch", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "loop_overhead",
        unit="milliseconds",
        warm_up=2,
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[
            _measuring.bar(
                f"{name}, beyond bare",
                measured[f"{name}, beyond bare"]["median"],
                most=MOST[devices],
            )
            for devices, name in DEVICES.items()
        ],
    )


if __name__ == "__main__":
    main()
