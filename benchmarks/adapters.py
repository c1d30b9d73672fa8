"""What do low-rank adapters spare, against training all parameters?

Baseline: the same transformer, of which all parameters are trained, with the same optimizer.

Measured, with adapters of rank 8 in all layers of attention and of the dense branches, as
`models.lora` puts them: the bytes of the optimizer's state; the bytes that a checkpoint after the
first adds to the disk; and milliseconds of a step, which contestants take in turns. The operations
of a step are counted in what is traced.
"""

import functools
import math
import tempfile
from pathlib import Path

import _measuring
import jax
import numpy as np
import optax
from epoch_throughput import library

import models
import trainer
from trainer import data, losses
from trainer.phases.jaxprs import count_flops

WHOLE, ADAPTERS = "all parameters", "adapters"
RANK, STEPS, MOST = 8, 4, 0.05
QUICK = {"vocabulary": 16, "context": 8, "layers": 1, "heads": 2, "width": 8}
SIZE = {"vocabulary": 8192, "context": 128, "layers": 4, "heads": 8, "width": 512}
BATCH = 8


def make(size):
    """Return tasks by name, and the source."""
    network = models.transformer(**size)
    tokens = np.random.default_rng(0).integers(
        0, size["vocabulary"], (STEPS * BATCH, size["context"] + 1)
    )
    source = data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, batch_size=BATCH)
    params, _ = jax.jit(network.init)(jax.random.key(0), source.example["inputs"])
    networks = {
        WHOLE: models.pretrained(network, params),
        ADAPTERS: models.lora(network, params, rank=RANK),
    }
    optimizer = optax.adam(1e-3)
    return {
        name: trainer.supervised(each, losses.language_modeling, optimizer)
        for name, each in networks.items()
    }, source


def count_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def save_twice(task, source, folder):
    """Return the bytes that the first and the second checkpoint of a run add to the disk."""
    state, known, added = task.init(jax.random.key(0), source.example), set(), []
    step = jax.jit(task.step)
    with trainer.Checkpoints(folder, keep=1) as checkpoints:
        for epoch in (1, 2):
            state, _ = step(state, source.example)
            state = state.replace(epoch=jax.numpy.int32(epoch), stop=False)
            checkpoints.save(state)
            checkpoints.wait()
            found = Path(folder, "checkpoints", str(epoch)).rglob("*")
            files = [file.stat() for file in found if file.is_file()]
            added.append(sum(file.st_size for file in files if file.st_ino not in known))
            known = {file.st_ino for file in files}
    return added


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (11, 2.0)
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    tasks, source = make(QUICK if options.quick else SIZE)
    measured, contestants = {}, {}
    for name, task in tasks.items():
        state = task.init(jax.random.key(0), source.example)
        with tempfile.TemporaryDirectory() as folder:
            first, second = save_twice(task, source, folder)
        shapes = jax.eval_shape(lambda task=task: task.init(jax.random.key(0), source.example))
        traced = jax.make_jaxpr(task.step)(shapes.replace(stop=False), source.example)
        measured[name] = {
            "bytes of the optimizer's state": count_bytes(state.opt_state),
            "bytes of the first checkpoint": first,
            "bytes of the second checkpoint": second,
            "operations of a step": count_flops(traced),
        }
        run = library(trainer.training(task.step, source), state)
        run(1)  # compiles
        once = _measuring.timed(functools.partial(run, 1)) if seconds else 1.0
        contestants[name] = measure(run, max(1, math.ceil(seconds / once)))
    samples = _measuring.interleaved(contestants, rounds=rounds)
    ratios = {what: measured[ADAPTERS][what] / measured[WHOLE][what] for what in measured[ADAPTERS]}
    shown = [
        (what, *(_measuring.text(measured[name][what]) for name in tasks), f"{ratios[what]:.3f}")
        for what in ratios
    ]
    _measuring.show("adapters beside frozen parameters", ("", *tasks, "ratio"), shown)
    ratios["milliseconds of a step"] = _measuring.ratio(samples[ADAPTERS], samples[WHOLE])
    times = {name: _measuring.spread(figures) for name, figures in samples.items()}
    rows = [(name, *_measuring.columns(figures)) for name, figures in times.items()]
    _measuring.show("milliseconds of a step", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "adapters",
        unit="bytes; milliseconds of a step",
        warm_up="compilation, two epochs, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        size=QUICK if options.quick else SIZE,
        measured={**measured, "milliseconds of a step": times},
        ratios=ratios,
        bars=[
            _measuring.bar(f"{what}, {ADAPTERS} / {WHOLE}", ratios[what], most=MOST)
            for what in ("bytes of the optimizer's state", "bytes of the second checkpoint")
        ],
    )


def measure(run, epochs):
    """Build a function that trains for some epochs and gives the milliseconds of a step."""
    return lambda: 1e3 * _measuring.timed(lambda: run(epochs)) / epochs / STEPS


if __name__ == "__main__":
    main()
