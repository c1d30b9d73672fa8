"""How does the cost of an epoch grow with its length, its metrics, the leaves and the hooks?

Baseline: the same epoch in bare JAX, compiled, its state donated, its metrics read once an epoch as
one array, which is split into a dict of floats.

Measured: microseconds of an epoch, for epochs that compute from 0.1 ms to 10 s, report from 1 to
10,000 metrics, update from 10 to 10,000 leaves of 8 numbers, and run from 1 to 100 hooks that do
nothing. What does not grow in a series is small: 0.1 ms of work, one metric, ten leaves, no hook. A
figure is the mean over as many epochs as take a third of a second, 20 at least, or one where it
takes long; a call for one epoch is taken off first, so that starting does not count. Contestants
take turns.

A full run draws `cost_growth.svg` in docs/explanation, and writes it and a table into
`performance.md` there.
"""

import functools
import io
import math
from typing import NamedTuple

import _documents
import _measuring
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import hooks
import trainer

LIBRARY, BARE = "library", "bare JAX"
PAGE, PICTURE = (
    _documents.ROOT / "docs" / "explanation" / name
    for name in ("performance.md", "cost_growth.svg")
)
WIDTH = 64
"""Of the matrix whose products are an epoch's work."""


class Case(NamedTuple):
    """An epoch."""

    milliseconds: float = 0.1
    metrics: int = 1
    leaves: int = 10
    hooks: int = 0


SERIES = {
    "milliseconds of work": [Case(milliseconds=10.0**n) for n in range(-1, 5)],
    "metrics": [Case(metrics=10**n) for n in range(5)],
    "leaves of the state": [Case(leaves=10**n) for n in range(1, 5)],
    "hooks that do nothing": [Case(hooks=n) for n in (1, 3, 10, 30, 100)],
}
FIELDS = dict(zip(SERIES, Case._fields, strict=True))


def find_pace():
    """Return how many products of an epoch's work take a millisecond."""

    @jax.jit
    def work(matrix):
        return multiply(matrix, 10_000)

    matrix = jnp.eye(WIDTH)
    jax.block_until_ready(work(matrix))
    seconds = min(_measuring.timed(lambda: jax.block_until_ready(work(matrix))) for _ in range(3))
    return 10_000 / seconds / 1e3


def multiply(matrix, times):
    return lax.fori_loop(0, times, lambda _, product: jnp.tanh(product @ matrix), matrix)


def make_epoch(case, products):
    """Return (params, function of them that gives params, and metrics `[metrics]`)."""
    leaves = {f"leaf_{number}": jnp.ones(8) for number in range(case.leaves - 1)}

    def run(params):
        matrix = multiply(params["matrix"], products)
        others = jax.tree.map(lambda leaf: leaf * 0.5, {**params, "matrix": ()})
        return {**others, "matrix": matrix}, matrix[0, 0] + jnp.arange(case.metrics)

    return {"matrix": jnp.eye(WIDTH), **leaves}, run


def name_metrics(case):
    return [f"metric_{number}" for number in range(case.metrics)]


def nothing(state, metrics):
    """Be a hook that does nothing."""
    return state


def library(case, params, run):
    """Build `train(epochs)` of `fit`, which returns the parameters."""

    def step(state, data):
        after, metrics = run(state.params)
        named = {name: metrics[place] for place, name in enumerate(names)}
        return state.replace(params=after), None, named

    names = name_metrics(case)
    start = trainer.TrainState.create(params=params, rng=jax.random.key(0))
    phase = trainer.Phase("train", step)

    def train(epochs):
        chain = hooks.chain(*[nothing] * case.hooks)
        state, _ = trainer.fit(start, phase, epochs=epochs, hooks=chain)
        return jax.block_until_ready(state.params)

    return train


def bare(case, params, run):
    """Build `train(epochs)` of a loop of three lines, which returns the parameters."""
    names = name_metrics(case)
    epoch = jax.jit(run, donate_argnums=0)

    def train(epochs):
        after, history = jax.tree.map(jnp.copy, params), []
        for _ in range(epochs):
            after, metrics = epoch(after)
            history.append(dict(zip(names, np.asarray(metrics).tolist(), strict=True)))
        return jax.block_until_ready(after)

    return train


def an_epoch(train, epochs):
    """Build a measurement: microseconds of each epoch but the first."""

    def measure():
        one, more = (_measuring.timed(functools.partial(train, n)) for n in (1, epochs + 1))
        least = more / (epochs + 1) / 10  # noise can be larger than short epochs
        return max((more - one) / epochs, least) * 1e6

    return measure


def measure_case(case, pace, *, rounds, seconds):
    """Return the microseconds of an epoch of each, one figure a round."""
    params, run = make_epoch(case, max(1, round(case.milliseconds * pace)))
    contestants = {LIBRARY: library(case, params, run), BARE: bare(case, params, run)}
    for train in contestants.values():
        train(1)  # compiles
    one = max(_measuring.timed(functools.partial(train, 1)) for train in contestants.values())
    epochs = max(20, min(1000, math.ceil(seconds / one))) if one < 0.5 else 1
    measures = {name: an_epoch(train, epochs) for name, train in contestants.items()}
    if one > 0.5:
        rounds = 2 if one < 5 else 1
    return _measuring.interleaved(measures, rounds=rounds, warm_up=int(one < 0.5))


def draw(measured, target):
    """Draw a panel for each series: medians of both, over what grows, as SVG."""
    import matplotlib.figure

    with matplotlib.rc_context({"svg.hashsalt": "entracte", "svg.fonttype": "none"}):
        figure = matplotlib.figure.Figure(figsize=(9, 6), layout="constrained")
        for axes, (what, points) in zip(figure.subplots(2, 2).flat, measured.items(), strict=True):
            sizes = [float(size) for size in points]
            for name, color, style in ((LIBRARY, "#c2410c", "o-"), (BARE, "#475569", "s--")):
                medians = [point[name]["median"] / 1e3 for point in points.values()]
                axes.loglog(sizes, medians, style, color=color, label=name, markersize=4)
            axes.set(xlabel=what, ylabel="ms an epoch")
            axes.grid(alpha=0.3)
            bottom, top = axes.get_ylim()
            axes.set_ylim(min(bottom, 0.05), max(top, 2))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter("")
        figure.axes[0].legend(frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None})


def render(measured, ratios, environment):
    """Write the picture and the table as Markdown: milliseconds of an epoch, and the ratios."""
    lines = [
        f"![Time of an epoch over each of the four, beside bare JAX]({PICTURE.name})",
        "",
        "| what grows | size | library, ms | bare JAX, ms | library / bare |",
        "|---|---:|---:|---:|---:|",
    ]
    for what, points in measured.items():
        for size, found in points.items():
            own, other = (_measuring.text(found[name]["median"] / 1e3) for name in (LIBRARY, BARE))
            ratio = _measuring.text(ratios[what][size]["median"])
            lines.append(f"| {what} | {float(size):,g} | {own} | {other} | {ratio} |")
    return "\n".join(
        [*lines, "", f"{environment['date'][:10]}, {_measuring.describe(environment)}."]
    )


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds, series = 7, 0.3, SERIES
    if options.quick:
        rounds, seconds = 1, 0.0
        series = {what: cases[:2] for what, cases in SERIES.items()}
    pace, measured, ratios = find_pace(), {}, {}
    for what, cases in series.items():
        measured[what], ratios[what], rows = {}, {}, []
        for case in cases:
            size = f"{getattr(case, FIELDS[what]):g}"
            samples = measure_case(case, pace, rounds=rounds, seconds=seconds)
            found = {name: _measuring.spread(figures) for name, figures in samples.items()}
            measured[what][size] = found
            ratios[what][size] = _measuring.ratio(samples[LIBRARY], samples[BARE])
            pairs = zip(samples[LIBRARY], samples[BARE], strict=True)
            beyond = _measuring.spread([one - other for one, other in pairs])
            found["beyond bare JAX"] = beyond
            medians = [_measuring.text(one["median"]) for one in found.values()]
            rows.append((size, *medians, *_measuring.columns(ratios[what][size])))
        columns = (what, LIBRARY, BARE, "beyond", "library / bare", "quartiles")
        _measuring.show("Microseconds an epoch", columns, rows)
    draw(measured, io.BytesIO() if options.quick else PICTURE)
    page = render(measured, ratios, _measuring.environment())
    _measuring.CONSOLE.print(page)
    if not options.quick:
        _documents.insert(PAGE, "cost_growth", page)
    _measuring.finish(
        options,
        "cost_growth",
        unit="microseconds",
        warm_up="compilation, an epoch, and where it is shorter than 0.5 s a round",
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[],
    )


if __name__ == "__main__":
    main()
