"""How many tokens per second are trained with conversations packed into rows, against one a row?

Baseline: the same conversations without packing, each in a row of its own, padded to the same
length. Both are read by `data.chat` from the same file, and train the same transformer with the
same optimizer and batches of the same shape. A figure counts the tokens of the assistant alone.

Measured: conversations of one to three turns, whose lengths are drawn from a log-normal
distribution, as those of public collections roughly are: most are short, few fill a row. Those
that are longer are cut, in both. A figure is one call that trains for as many epochs as take about
two seconds, until loss and state are there. Contestants take turns; ratios are taken round by
round. The tokens trained per second follow from the steps per second and from the tokens that a
step trains on average, as the source counts them.
"""

import functools
import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import _measuring
import jax
import numpy as np
import optax
from _killed_programs import TEMPLATE, make_byte_tokenizer
from epoch_throughput import library

import models
import trainer
from trainer import data, losses

PACKED, SINGLE = "packed", "one a row"
LEAST = 1.5
STEPS = 8
"""Steps of an epoch."""


class Size(NamedTuple):
    """Of the conversations, the transformer and a batch."""

    conversations: int
    length: int
    """Inputs of a row."""
    mean: int
    """Characters, and so tokens, of a message on average."""
    layers: int
    heads: int
    width: int
    batch_size: int


QUICK = Size(40, 64, 10, layers=1, heads=2, width=8, batch_size=2)
SMALL = Size(2_000, 256, 16, layers=4, heads=4, width=128, batch_size=8)
LARGE = Size(20_000, 2_048, 128, layers=12, heads=12, width=768, batch_size=16)
"""For a GPU."""


def write_conversations(file, size):
    """Write conversations of mixed length, drawn with a fixed seed."""
    random = np.random.default_rng(0)
    sigma = 1.0  # the mean of a log-normal distribution is exp(mu + sigma**2 / 2)

    def message(role):
        characters = 1 + int(random.lognormal(math.log(size.mean) - sigma**2 / 2, sigma))
        return {"role": role, "content": "".join(random.choice([*"abcdefgh "], characters))}

    with open(file, "w") as out:
        for _ in range(size.conversations):
            turns = [
                message(r) for _ in range(random.integers(1, 4)) for r in ("user", "assistant")
            ]
            out.write(json.dumps({"messages": turns}) + "\n")


def make_sources(size):
    """Return the sources by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "conversations.jsonl")
        write_conversations(file, size)
        return {
            name: data.chat(
                file,
                make_byte_tokenizer(),
                batch_size=size.batch_size,
                length=size.length,
                template=TEMPLATE,
                pack=name == PACKED,
                steps_per_epoch=STEPS,
            )
            for name in (PACKED, SINGLE)
        }


def race(size, sources, task, *, rounds, seconds):
    """Return the trained tokens per second of each source, one figure a round."""
    contestants = {}
    for name, source in sources.items():
        run = library(
            trainer.training(task.step, source), task.init(jax.random.key(0), source.example)
        )
        run(1)  # compiles
        once = _measuring.timed(functools.partial(run, 1)) if seconds else 1.0
        tokens = STEPS * size.batch_size * source.counts.trained / source.size
        contestants[name] = rate(run, max(1, math.ceil(seconds / once)), tokens)
    return _measuring.interleaved(contestants, rounds=rounds)


def rate(run, epochs, tokens):
    """Build a function that trains for some epochs and gives the trained tokens per second."""
    return lambda: epochs * tokens / _measuring.timed(lambda: run(epochs))


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (11, 2.0)
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    size = QUICK if options.quick else LARGE if jax.default_backend() == "gpu" else SMALL
    sources = make_sources(size)
    shape = {name: getattr(size, name) for name in ("layers", "heads", "width")}
    network = models.transformer(vocabulary=256, context=size.length, **shape)
    precision = "bfloat16" if size is LARGE else "float32"
    task = trainer.supervised(
        network, losses.language_modeling, optax.adamw(1e-3), precision=precision
    )
    samples = race(size, sources, task, rounds=rounds, seconds=seconds)

    rates = {name: _measuring.spread(figures) for name, figures in samples.items()}
    what = f"{PACKED} / {SINGLE}"
    ratios = {what: _measuring.ratio(samples[PACKED], samples[SINGLE])}
    filled = {
        f"share of inputs, {name}": source.counts.tokens / source.size / size.length
        for name, source in sources.items()
    }
    rows = [(name, *_measuring.columns(figures)) for name, figures in rates.items()]
    _measuring.show("trained tokens per second", ("", "median", "quartiles"), rows)
    rows = [(what, *_measuring.columns(ratios[what]))]
    _measuring.show("ratios", ("", "median", "quartiles"), rows)
    _measuring.show(
        "inputs that are no padding", ("", ""), [(k, f"{v:.2f}") for k, v in filled.items()]
    )
    _measuring.finish(
        options,
        "packing",
        unit="trained tokens/s",
        warm_up="compilation, two epochs, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        size=size._asdict(),
        measured={"trained tokens/s": rates, **filled},
        ratios=ratios,
        bars=[_measuring.bar(what, ratios[what]["median"], least=LEAST)],
    )


if __name__ == "__main__":
    main()
