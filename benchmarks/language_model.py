"""How many tokens per second does the library train a transformer on, against bare JAX?

Baseline: the same network and optimizer in bare JAX (`_bare.py`), with the same shuffle on the
device, the state donated, and the mean loss read once an epoch: as one compiled scan an epoch, and
as one dispatch a step. The bar is held against the faster of the two.

Measured: windows of random tokens, on the device, AdamW. On a GPU a model of GPT-2 small's size in
bfloat16, the parameters in float32, with a vocabulary of a multiple of 128; elsewhere a small one
in float32. A figure is one call that trains for as many epochs as take about two seconds, all its
fixed costs included, until loss and state are there. Contestants take turns; ratios are taken round
by round. `--gpu` takes fewer and shorter rounds.

Also: the floating-point operations of a step, as `trainer.cost` counts them, those a second, and,
where the device's peak is known, the share of it that they are (model FLOPs utilisation). All
scores of the attention count, also those that a causal mask hides, except on a CPU, which leaves
out the keys after a block of queries.
"""

import functools
import math
from typing import NamedTuple

import _bare
import _measuring
import jax
import numpy as np
import optax
from epoch_throughput import DISPATCH, LIBRARY, SCAN, bare, library

import models
import trainer
from trainer import data, losses
from trainer.phases.costs.cost import get_peak_flops
from trainer.phases.jaxprs import count_flops

FASTEST = "fastest bare"
LEAST = 0.97
OPTIMIZER = optax.adamw(1e-3)


class Size(NamedTuple):
    """Of the transformer and of what it trains on."""

    vocabulary: int
    context: int
    """Tokens of a window."""
    layers: int
    heads: int
    width: int
    batch_size: int
    """Windows a step."""
    steps: int
    """Of an epoch."""
    precision: str = "float32"

    @property
    def tokens(self):
        """Of an epoch."""
        return self.steps * self.batch_size * self.context


QUICK = Size(vocabulary=16, context=8, layers=1, heads=2, width=8, batch_size=2, steps=2)
SMALL = Size(vocabulary=96, context=128, layers=4, heads=4, width=128, batch_size=16, steps=8)
GPT2 = Size(50304, 1024, 12, 12, 768, batch_size=8, steps=32, precision="bfloat16")
LARGE_GPT2 = GPT2._replace(batch_size=32, steps=8)
ROOMY = 60e9
"""Bytes of a GPU's memory from which a step takes more windows."""


def chosen(*, quick, gpu):
    if quick:
        return QUICK._replace(precision="bfloat16") if gpu else QUICK
    if jax.default_backend() != "gpu":
        return SMALL
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return LARGE_GPT2 if memory >= ROOMY else GPT2


def windows(size):
    """Draw tokens, evenly over the vocabulary, as the rows of embeddings are read and added to."""
    shape = size.steps * size.batch_size, size.context + 1
    tokens = np.random.default_rng(0).integers(0, size.vocabulary, shape, np.int32)
    return data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, size.batch_size)


def lowered(network, precision):
    """Build a network compute in a precision, its parameters cast at every step."""

    def apply(params, model_state, inputs, *, key, train):
        lower = jax.tree.map(lambda leaf: leaf.astype(precision), params)
        return network.apply(lower, model_state, inputs, key=key, train=train)

    return models.Network(network.init, apply)


def race(size, task, start, source, network, *, rounds, seconds):
    """Return the tokens per second of each entrant, one figure a round."""
    shape = lowered(network, size.precision), OPTIMIZER, source.size, size.batch_size
    entrants = {
        LIBRARY: library(trainer.training(task.step, source), start),
        SCAN: bare(_bare.one_scan(*shape), start, source.arrays),
        DISPATCH: bare(_bare.one_dispatch_a_step(*shape), start, source.arrays),
    }
    contestants = {}
    for entrant, run in entrants.items():
        run(1)  # compiles
        once = _measuring.timed(functools.partial(run, 1)) if seconds else 1.0
        contestants[entrant] = rate(size, run, max(1, math.ceil(seconds / once)))
    return _measuring.interleaved(contestants, rounds=rounds)


def rate(size, run, epochs):
    """Build a function that trains for some epochs and gives the tokens per second."""
    return lambda: epochs * size.tokens / _measuring.timed(lambda: run(epochs))


def operations(network, start, source):
    """Count the operations of a step with explicit attention, as in float32: those of cuDNN's
    kernel for smaller floats do not show. It is only traced, as compiling it takes long."""
    task = trainer.supervised(network, losses.language_modeling, OPTIMIZER)
    batch = {name: array[: source.batch_size] for name, array in source.arrays.items()}
    return count_flops(jax.make_jaxpr(task.step)(start, batch))


def work_of(flops, steps_per_second):
    """Describe the operations of a step, those a second, and their share of the device's peak."""
    work = {"FLOP a step": flops, "FLOP/s": flops * steps_per_second}
    if (peak := get_peak_flops(jax.devices()[0].device_kind)) is not None:
        work["model FLOPs utilisation"] = flops * steps_per_second / peak
    return work


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    rounds, seconds = (5, 1.0) if options.gpu else (15, 2.0)
    if options.quick:
        rounds, seconds = 1, 0.0
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    size = chosen(quick=options.quick, gpu=options.gpu)
    sizes = {name: getattr(size, name) for name in ("layers", "heads", "width")}
    network = models.transformer(vocabulary=size.vocabulary, context=size.context, **sizes)
    source = windows(size)
    task = trainer.supervised(
        network, losses.language_modeling, OPTIMIZER, precision=size.precision
    )
    start = task.init(jax.random.key(0), source.example)
    samples = race(size, task, start, source, network, rounds=rounds, seconds=seconds)

    rates = {entrant: _measuring.spread(figures) for entrant, figures in samples.items()}
    fastest = max((SCAN, DISPATCH), key=lambda entrant: rates[entrant]["median"])
    rivals = {name: name for name in samples if name != LIBRARY} | {FASTEST: fastest}
    ratios = {
        f"{LIBRARY} / {name}": _measuring.ratio(samples[LIBRARY], samples[rival])
        for name, rival in rivals.items()
    }
    steps = rates[LIBRARY]["median"] * size.steps / size.tokens
    work = work_of(operations(network, start, source), steps)

    rows = [(entrant, *_measuring.columns(figures)) for entrant, figures in rates.items()]
    _measuring.show("tokens per second", ("", "median", "quartiles"), rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show("ratios", ("", "median", "quartiles"), rows)
    _measuring.show("the library's work", ("", ""), [(k, f"{v:.3g}") for k, v in work.items()])
    what = f"{LIBRARY} / {FASTEST}"
    _measuring.finish(
        options,
        "language_model",
        unit="tokens/s",
        warm_up="compilation, two epochs, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        size=size._asdict(),
        measured={"tokens/s": rates, **work},
        ratios=ratios,
        bars=[_measuring.bar(what, ratios[what]["median"], least=LEAST)],
    )


if __name__ == "__main__":
    main()
