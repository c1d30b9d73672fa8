"""What does `fit(..., overlap=True)` save, and what does it cost?

Baseline: the same `fit` without overlap, in turns.

Measured: the milliseconds of an epoch, of calls that train for 40 epochs. The phases of one take
about 14 ms (an MLP on random images), and the hooks 20 ms:

- no hooks: what overlap costs where there is nothing to hide;
- waiting: a hook that waits for 20 ms, as for a disk or a network;
- computing: a hook that computes in numpy for 20 ms, on a CPU beside the epoch;
- evaluation: `hooks.evaluate` over a split, and the hook that waits;
- checkpoints: `hooks.save_checkpoints` in every epoch, and the hook that waits;
- average: `hooks.average_params`, and the hook that waits;
- touched: a hook that replaces the parameters in every epoch, so that no epoch can overlap;
- stream: as waiting, with data from the host in superbatches;
- single steps: as waiting, with a dispatch for each step, as a convolution on a CPU needs.
"""

import functools
import tempfile
import time
from pathlib import Path

import _measuring
import jax
import numpy as np
import optax

import hooks
import models
import trainer
from trainer import data, losses

EPOCHS, QUICK_EPOCHS = 40, 3
HIDDEN, GPU_HIDDEN = (128,), (2048, 2048)
"""Widths of the MLP, for epochs of 10 to 20 ms."""
HOOK_SECONDS = 0.02


def wait(state, metrics):
    time.sleep(HOOK_SECONDS)
    return state


def compute(state, metrics):
    until, numbers = time.perf_counter() + HOOK_SECONDS, np.ones(20_000)
    while time.perf_counter() < until:
        numbers = np.sqrt(numbers) + 1
    return state


def touch(state, metrics):
    return state.replace(params=jax.tree.map(lambda leaf: leaf * 1, state.params))


def contestants(epochs, hidden):
    """Return, for each case, the milliseconds of an epoch with and without overlap."""
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.random((8192, 64), np.float32),
        "labels": rng.integers(0, 10, 8192).astype(np.int32),
    }
    source, split = data.Arrays(arrays, batch_size=64), data.Arrays(arrays, batch_size=1024)
    task = trainer.supervised(models.mlp(hidden=hidden), losses.classification, optax.adam(1e-3))
    start = task.init(jax.random.key(0), source.example)
    batches = [jax.tree.map(lambda x, n=n: x[n : n + 64], arrays) for n in range(0, 8192, 64)]
    phase = trainer.training(task.step, source)
    stream = trainer.training(task.step, data.Stream(batches, superbatch=64))
    steps = trainer.training(task.step, source, executor="step")
    measure = trainer.evaluation(task.measure, split, name="val")
    folder = Path(tempfile.mkdtemp())

    def save(name):
        return hooks.save_checkpoints(folder / f"{name}-{time.time_ns()}", max_cost=None)

    cases = {
        "no hooks": (phase, lambda: ()),
        "waiting": (phase, lambda: (wait,)),
        "computing": (phase, lambda: (compute,)),
        "evaluation": (phase, lambda: (hooks.evaluate(measure), wait)),
        "checkpoints": (phase, lambda: (wait, save("run"))),
        "average": (phase, lambda: (hooks.average_params(0.9), wait)),
        "touched": (phase, lambda: (touch,)),
        "stream": (stream, lambda: (wait,)),
        "single steps": (steps, lambda: (wait,)),
    }

    def run(program, make, overlap, epochs):
        after, _ = trainer.fit(start, program, epochs=epochs, hooks=make(), overlap=overlap)
        jax.block_until_ready(after.params)

    def milliseconds(program, make, overlap):
        one, all_of_them = (
            _measuring.timed(functools.partial(run, program, make, overlap, n))
            for n in (1, epochs + 1)
        )
        return (all_of_them - one) / epochs * 1e3

    return {
        f"{name}, {'overlap' if overlap else 'serial'}": functools.partial(
            milliseconds, program, make, overlap
        )
        for name, (program, make) in cases.items()
        for overlap in (False, True)
    }


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    rounds, epochs = (1, QUICK_EPOCHS) if options.quick else (3 if options.gpu else 9, EPOCHS)
    hidden = GPU_HIDDEN if options.gpu and not options.quick else HIDDEN
    samples = _measuring.interleaved(contestants(epochs, hidden), rounds=rounds)
    names = list(dict.fromkeys(name.rpartition(",")[0] for name in samples))
    ratios = {
        name: _measuring.ratio(samples[f"{name}, overlap"], samples[f"{name}, serial"])
        for name in names
    }
    ways = ("serial", "overlap")
    measured = {
        name: {way: _measuring.spread(samples[f"{name}, {way}"]) for way in ways} for name in names
    }
    rows = [
        (
            name,
            *(_measuring.text(measured[name][way]["median"]) for way in ways),
            *_measuring.columns(ratios[name]),
        )
        for name in names
    ]
    heads = ("hooks", "serial", "overlap", "ratio", "quartiles")
    _measuring.show("Milliseconds an epoch, and overlap over serial", heads, rows)
    bars = {"waiting": 0.65, "no hooks": 1.05, "touched": 1.1}
    _measuring.finish(
        options,
        "overlap",
        unit="milliseconds",
        warm_up=1,
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[
            _measuring.bar(f"{name}, overlap / serial", ratios[name]["median"], most=most)
            for name, most in bars.items()
        ],
    )


if __name__ == "__main__":
    main()
