"""What does the usual chain of hooks cost a run of short epochs, and where does an epoch's time go?

The chain: `evaluate`, `stop_early`, `log_metrics` with `JsonLines`, `TensorBoard` and `Console`,
and `save_checkpoints` at its defaults.

Baseline: the same network, optimizer and batches in bare JAX (`_bare.py`), the faster of one scan
an epoch and one dispatch a step, followed by the same evaluation as one compiled call. It reads the
mean loss and both scores once an epoch, and writes nothing.

Measured: digits in batches of 64 with AdamW, an MLP, and a CNN of two blocks; a small transformer
on random tokens, two steps an epoch. The whole split is one batch of the evaluation, for all. A
figure is the time of an epoch, of a call of `fit` that trains for as many as take about a second,
all its fixed costs included. Contestants take turns; ratios are taken round by round.

Shares: the mean of each span of an epoch of the MLP (see `hooks.record_times`), of the training
thread and then of the others; a table shows those of a thousandth of the run or more. On a CPU
`dispatch` already computes much; to listen takes 2 us a span.
"""

import collections
import functools
import math
import tempfile
from pathlib import Path

import _bare
import _measuring
import jax
import jax.numpy as jnp
import optax
import rich.console
from epoch_throughput import BATCH_SIZE, DISPATCH, SCAN
from language_model import QUICK, SMALL, windows

import hooks
import models
import trainer
from trainer import data, losses
from trainer.host.time_spans import add_listener

ALONE, CHAIN, UNSAVED = "library, no hooks", "library + chain", "library + chain without saves"
EVALUATED = ", and an evaluation"
OPTIMIZER = optax.adamw(1e-3)
LEAST = 0.95


def chain(phase, directory):
    """Build the usual hooks, and what saves."""
    folder = Path(directory)
    console = rich.console.Console(file=(folder / "console.txt").open("w"))
    writers = (
        hooks.JsonLines(folder / "metrics.jsonl"),
        hooks.TensorBoard(folder),
        hooks.Console(console=console),
    )
    usual = hooks.chain(
        hooks.evaluate(phase),
        hooks.stop_early("val/loss", patience=10**6),
        hooks.log_metrics(*writers),
    )
    return usual, hooks.save_checkpoints(folder)


def library(phase, start, make_hooks):
    """Train with `fit`, in a folder of its own."""

    def run(epochs):
        with tempfile.TemporaryDirectory() as directory:
            state, _ = trainer.fit(start, phase, epochs=epochs, hooks=make_hooks(directory))
            jax.block_until_ready(state)

    return run


def bare(epoch, measure, start, train, val):
    """Train and evaluate in bare JAX, from the same parameters."""
    key = jax.random.key(1)
    first = _bare.State(start.params, start.opt_state, start.model_state)

    def run(epochs):
        state = jax.tree.map(jnp.copy, first)
        for number in range(epochs):
            state, loss = epoch(state, train.arrays, key, number)
            scores = None if measure is None else measure(state, val.arrays)
            float(loss), jax.device_get(scores)
        jax.block_until_ready(state)

    return run


def measuring(network):
    """Build the bare evaluation: mean loss and accuracy of a whole split."""

    @jax.jit
    def measure(state, arrays):
        logits, _ = network.apply(
            state.params, state.model_state, arrays["inputs"], key=None, train=False
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, arrays["labels"])
        return losses.mean(), (logits.argmax(-1) == arrays["labels"]).mean()

    return measure


def entrants(network, loss, train, val):
    """Build `run(epochs)` of each, and the phases."""
    task = trainer.supervised(network, loss, OPTIMIZER)
    start = task.init(jax.random.key(0), train.example)
    phase = trainer.training(task.step, train)
    evaluation = trainer.evaluation(task.measure, val)
    shape = network, OPTIMIZER, train.size, train.batch_size
    epochs = {SCAN: _bare.one_scan(*shape), DISPATCH: _bare.one_dispatch_a_step(*shape)}
    made = {}
    for name, epoch in epochs.items():
        made[name] = bare(epoch, None, start, train, val)
        made[name + EVALUATED] = bare(epoch, measuring(network), start, train, val)

    def unsaved(directory):
        return chain(evaluation, directory)[0]

    made[ALONE] = library(phase, start, lambda directory: ())
    made[UNSAVED] = library(phase, start, unsaved)
    made[CHAIN] = library(phase, start, functools.partial(chain, evaluation))
    return made


def race(made, *, rounds, seconds):
    """Return the milliseconds an epoch of each entrant, one figure a round."""
    contestants = {}
    for name, run in made.items():
        run(1)  # compiles
        once = min(_measuring.timed(functools.partial(run, 1)) for _ in range(3))
        epochs = max(2, math.ceil(seconds / once)) if seconds else 2

        def measure(run=run, epochs=epochs):
            return _measuring.timed(functools.partial(run, epochs)) / epochs * 1e3

        contestants[name] = measure
    return _measuring.interleaved(contestants, rounds=rounds)


def compare(samples):
    """Return ratios of time to bare JAX's, the faster of the two ways."""
    fastest = min((SCAN, DISPATCH), key=lambda name: _measuring.spread(samples[name])["median"])
    against = {ALONE: fastest, UNSAVED: fastest + EVALUATED, CHAIN: fastest + EVALUATED}
    return {
        f"fastest bare / {name}": _measuring.ratio(samples[other], samples[name])
        for name, other in against.items()
    }


def shares(run, epochs):
    """Return the microseconds an epoch of each span, by thread and path, of a run."""
    sums = collections.Counter()

    def hear(span):
        thread = "" if span.thread_name == "MainThread" else f"thread {span.thread_name}: "
        sums[thread + " > ".join(" ".join(part).strip() for part in span.path)] += (
            span.ended - span.began
        )

    run(2)  # compiles
    stop = add_listener(hear)
    try:
        whole = _measuring.timed(functools.partial(run, epochs))
    finally:
        stop()
    found = {name: nanoseconds / epochs / 1e3 for name, nanoseconds in sums.items()}
    return {"run": whole / epochs * 1e6} | dict(sorted(found.items()))


def cases(*, quick):
    """Return name to (network, loss, training source, validation source)."""
    train, val = data.digits(batch_size=BATCH_SIZE)
    size = QUICK if quick else SMALL._replace(batch_size=4, steps=2)
    if quick:
        train = data.Arrays({k: a[: 2 * BATCH_SIZE] for k, a in train.arrays.items()}, BATCH_SIZE)
    val = data.Arrays(val.arrays, val.size)
    tokens = windows(size)
    text = models.transformer(
        vocabulary=size.vocabulary,
        context=size.context,
        layers=size.layers,
        heads=size.heads,
        width=size.width,
    )
    mlp = models.mlp(hidden=(8,)) if quick else models.mlp(classes=10)
    cnn = models.cnn(channels=(4,), hidden=8) if quick else models.cnn(classes=10)
    return {
        "mlp": (mlp, losses.classification, train, val),
        "cnn": (cnn, losses.classification, train, val),
        "transformer": (text, losses.language_modeling, tokens, windows(size._replace(steps=1))),
    }


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds, epochs = (1, 0.0, 5) if options.quick else (15, 1.0, 300)
    measured, ratios, bars = {}, {}, []
    for name, case in cases(quick=options.quick).items():
        made = entrants(*case)
        samples = race(made, rounds=rounds, seconds=seconds)
        measured[name] = {who: _measuring.spread(figures) for who, figures in samples.items()}
        ratios[name] = compare(samples)
        held = f"fastest bare / {CHAIN}"
        bars.append(_measuring.bar(f"{name}: {held}", ratios[name][held]["median"], least=LEAST))
        rows = [(who, *_measuring.columns(figures)) for who, figures in measured[name].items()]
        _measuring.show(f"{name}: milliseconds an epoch", ("", "median", "quartiles"), rows)
        rows = [(what, *_measuring.columns(figures)) for what, figures in ratios[name].items()]
        _measuring.show(f"{name}: ratios", ("", "median", "quartiles"), rows)
        if name == "mlp":
            spans = shares(made[CHAIN], epochs)
            whole = spans["run"]
            shown = {what: us for what, us in spans.items() if us >= whole / 1000}
            rows = [(w, _measuring.text(us), f"{us / whole:.1%}") for w, us in shown.items()]
            _measuring.show("mlp: where an epoch goes", ("", "us", "share"), rows)
            measured["mlp, microseconds an epoch of each span"] = spans
    _measuring.finish(
        options,
        "usual_chain",
        unit="milliseconds an epoch",
        warm_up="compilation, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
