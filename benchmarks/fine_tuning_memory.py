"""What memory does fine-tuning a language model take, and how long a batch fits on which GPU?

Computed, not measured on a GPU: the bytes of the state follow from its shapes. What a step takes
besides, gradients, activations and logits, is what XLA plans for a CPU, by `trainer.cost`, for a
few numbers of rows; in between it is interpolated, beyond them extrapolated. It is planned in
float32, as a CPU has no products in bfloat16; a GPU needs less for activations in bfloat16, though
most are logits, which are float32 on both.

All parameters: in float32, AdamW, computed in bfloat16 (`precision="bfloat16"`), for which a copy
of them is counted. Adapters: of rank 16 in all layers, AdamW, beside a base in bfloat16. Blocks are
recomputed in the backward pass (`remat=True`) and compiled once (`scan=True`). What fits is counted
for 0.9 of a GPU's memory, in 10^9 bytes, as the driver and fragments take some.
"""

from typing import NamedTuple

import _documents
import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
import trainer
from trainer import data, losses

WHOLE, ADAPTERS = "all parameters", "adapters"
PAGE = _documents.ROOT / "docs" / "tutorials" / "language.md"
GPUS, SHARE = (24, 80, 140), 0.9
LENGTH, RANK = 2_048, 16
"""Tokens of a row; rank of the adapters."""
ROWS = (1, 8, 32)
"""Rows of the steps that are planned."""


class Size(NamedTuple):
    """Of a language model, as its `config.json` has it."""

    vocabulary: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    hidden: int
    biased: bool
    """Whether query, key and value have a bias."""
    tied: bool


QUICK = {"tiny": Size(32, 1, 2, 1, 32, 64, biased=True, tied=True)}
SIZES = {
    "Qwen 2.5 0.5B": Size(151_936, 24, 14, 2, 896, 4_864, biased=True, tied=True),
    "Qwen 2.5 1.5B": Size(151_936, 28, 12, 2, 1_536, 8_960, biased=True, tied=True),
    "Qwen 2.5 3B": Size(151_936, 36, 16, 2, 2_048, 11_008, biased=True, tied=True),
    "Llama 3.1 8B": Size(128_256, 32, 32, 8, 4_096, 14_336, biased=False, tied=False),
}


def build(size):
    """Build the network of a size."""
    return models.transformer(
        vocabulary=size.vocabulary,
        context=LENGTH,
        layers=size.layers,
        heads=size.heads,
        width=size.width,
        hidden=size.hidden,
        tied=size.tied,
        remat=True,
        scan=True,
        architecture=models.Architecture(
            kv_heads=size.kv_heads,
            gated=True,
            activation="silu",
            embedding_scale=1.0,
            attention_bias=size.biased,
        ),
    )


def shape_params(network):
    """Return the shapes of a network's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), tokens)[0]


def shape_state(network, base, batch):
    """Return the task of a network, or of adapters beside a base, and the shapes of its state."""

    def make(base):
        trained = network if base is None else models.lora(network, base, rank=RANK)
        return trainer.supervised(trained, losses.language_modeling, optax.adamw(1e-4))

    return make(base), jax.eval_shape(
        lambda base: make(base).init(jax.random.key(0), batch).replace(stop=None), base
    )


def count_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def plan(network, base):
    """Return the bytes that a step takes besides its state, by the number of rows."""
    found = {}
    for rows in ROWS:
        tokens = np.zeros((rows, LENGTH), np.int32)
        source = data.Arrays({"inputs": tokens, "labels": tokens}, rows)
        task, state = shape_state(network, base, source.example)
        cost = trainer.cost(trainer.training(task.step, source), state.replace(stop=False))
        found[rows] = cost["train"].temporary_bytes
    return found


def count_rows(planned, room):
    """Return how many rows fit into the bytes that are left for a step.

    >>> [count_rows({1: 10, 8: 24, 32: 120}, room) for room in (9, 11, 12, 28, 204)]
    [0, 1, 2, 9, 53]
    """
    counts, sizes = (np.array(list(some), float) for some in (planned, planned.values()))
    if room < sizes[0]:
        return 0
    place = min(max(int(np.searchsorted(sizes, room, "right")), 1), len(sizes) - 1)
    slope = (sizes[place] - sizes[place - 1]) / (counts[place] - counts[place - 1])
    return int(counts[place - 1] + (room - sizes[place - 1]) // slope)


def compute(size):
    """Return the figures of both ways to train a model, in bytes."""
    network = build(size)
    params = shape_params(network)
    lower = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    example = {name: np.zeros((1, LENGTH), np.int32) for name in ("inputs", "labels")}
    kept = {
        WHOLE: count_bytes(shape_state(network, None, example)[1]) + count_bytes(lower),
        ADAPTERS: count_bytes(shape_state(network, lower, example)[1]),
    }
    measured = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    for way, base in ((WHOLE, None), (ADAPTERS, params)):
        planned = plan(network, base)
        rows = {gpu: count_rows(planned, SHARE * gpu * 1e9 - kept[way]) for gpu in GPUS}
        measured[way] = {"state": kept[way], "step": planned, "rows": rows}
    return measured


def write_table(measured):
    """Write the figures as a table of Markdown."""
    columns = ("model", "parameters", "trained", "GB of the state")
    columns += (f"of a step of {ROWS[0]} row", *(f"of {rows}" for rows in ROWS[1:]))
    columns += tuple(f"rows on {gpu} GB" for gpu in GPUS)
    lines = [f"| {' | '.join(columns)} |", f"|---|---:|---|{'---:|' * (len(columns) - 3)}"]
    for name, figures in measured.items():
        for way in (WHOLE, ADAPTERS):
            found = figures[way]
            taken = (found["state"], *found["step"].values())
            sizes = (_measuring.text(count / 1e9) for count in taken)
            rows = (str(count or "none") for count in found["rows"].values())
            count = f"{figures['parameters'] / 1e9:.2f}B"
            lines.append(f"| {' | '.join((name, count, way, *sizes, *rows))} |")
    return "\n".join(lines)


def main():
    options = _measuring.arguments(__doc__).parse_args()
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    measured = {}
    for name, size in (QUICK if options.quick else SIZES).items():
        measured[name] = compute(size)
        _measuring.CONSOLE.print(f"{name} is planned")
    table = write_table(measured)
    _measuring.CONSOLE.print(table)
    if not options.quick:
        _documents.insert(PAGE, "fine_tuning_memory", table)
    _measuring.finish(
        options,
        "fine_tuning_memory",
        unit="bytes; rows of a batch",
        warm_up="none",
        repeats=1,
        length=LENGTH,
        rank=RANK,
        measured=measured,
        ratios={},
        bars=[],
    )


if __name__ == "__main__":
    main()
