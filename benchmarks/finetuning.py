"""How many tokens per second does the library fine-tune on, against bare JAX?

Baseline: the same network, optimizer and rows in bare JAX (`_bare.py`), shuffled on the device, the
state donated, and the mean loss read once an epoch: as one compiled scan an epoch, and as one
dispatch a step. The bar is held against the faster of the two.

Measured: conversations of mixed length, as of `packing.py`, packed into rows by `data.chat`, which
the library reads on the host and bare JAX on the device. A given transformer is trained on them,
all its parameters or adapters of rank 8 beside them, which bare JAX takes from `models.lora` too;
AdamW, and a loss of the assistant's tokens alone. A figure is one call that trains for as many
epochs as take about two seconds, until loss and state are there, and counts inputs without padding.
Contestants take turns; ratios are taken round by round.
"""

import functools
import math
import tempfile
from pathlib import Path

import _bare
import _measuring
import jax
import numpy as np
import optax
import packing
from _killed_programs import TEMPLATE, make_byte_tokenizer
from epoch_throughput import DISPATCH, LIBRARY, SCAN, bare, library

import models
import trainer
from trainer import data, losses

WHOLE, ADAPTERS = "all parameters", "adapters"
LEAST = 0.97
RANK = 8
OPTIMIZER = optax.adamw(1e-4)
SMALL = packing.SMALL._replace(conversations=300)
"""Epochs of a few steps would show the fixed costs of an epoch instead."""


def read_conversations(size):
    """Return packed rows as a source, and as arrays on the device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "conversations.jsonl")
        packing.write_conversations(file, size)
        source = data.chat(
            file,
            make_byte_tokenizer(),
            batch_size=size.batch_size,
            length=size.length,
            template=TEMPLATE,
        )
    rows = jax.tree.map(lambda *batches: np.concatenate(batches), *source)
    return source, jax.tree.map(jax.numpy.asarray, rows)


def race(size, source, arrays, network, *, rounds, seconds):
    """Return the tokens per second of each entrant, one figure a round."""
    task = trainer.supervised(network, losses.language_modeling, OPTIMIZER)
    start = task.init(jax.random.key(0), source.example)
    shape = network, OPTIMIZER, source.size, size.batch_size
    entrants = {
        LIBRARY: library(trainer.training(task.step, source), start),
        SCAN: bare(_bare.one_scan(*shape), start, arrays),
        DISPATCH: bare(_bare.one_dispatch_a_step(*shape), start, arrays),
    }
    rows = source.size // size.batch_size * size.batch_size
    tokens = source.counts.tokens * rows / source.size
    contestants = {}
    for entrant, run in entrants.items():
        run(1)  # compiles
        once = _measuring.timed(functools.partial(run, 1)) if seconds else 1.0
        contestants[entrant] = packing.rate(run, max(1, math.ceil(seconds / once)), tokens)
    return _measuring.interleaved(contestants, rounds=rounds)


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (11, 2.0)
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    size = packing.QUICK if options.quick else SMALL
    source, arrays = read_conversations(size)
    shape = {name: getattr(size, name) for name in ("layers", "heads", "width")}
    network = models.transformer(vocabulary=256, context=size.length, **shape)
    params, _ = jax.jit(network.init)(jax.random.key(0), source.example["inputs"])
    networks = {
        WHOLE: models.pretrained(network, params),
        ADAPTERS: models.lora(network, params, rank=RANK),
    }
    measured, ratios, bars, rows = {}, {}, [], []
    for name, trained in networks.items():
        samples = race(size, source, arrays, trained, rounds=rounds, seconds=seconds)
        measured[name] = {entrant: _measuring.spread(some) for entrant, some in samples.items()}
        fastest = max((SCAN, DISPATCH), key=lambda entrant: measured[name][entrant]["median"])
        what = f"{name}, {LIBRARY} / fastest bare"
        ratios[what] = _measuring.ratio(samples[LIBRARY], samples[fastest])
        bars.append(_measuring.bar(what, ratios[what]["median"], least=LEAST))
        rows += [(f"{name}, {one}", *_measuring.columns(measured[name][one])) for one in samples]
    _measuring.show("tokens per second", ("", "median", "quartiles"), rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show("ratios", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "finetuning",
        unit="tokens/s",
        warm_up="compilation, two epochs, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        size=size._asdict(),
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
