"""What do bfloat16, float16, accumulation and clipping cost or gain, in steps per second?

Baseline: the same done by hand in bare JAX, as one compiled scan an epoch with the state donated:
parameters and inputs cast in the loss, float16 with a dynamic loss scale, a scan over four
micro-batches, gradients scaled to a norm of 1. The bar is the library over it, setting by setting.
What a setting gains or costs against the library's float32 is reported without a bar: CPUs emulate
the small floats, and on recent NVIDIA GPUs float32 products are TF32's unless one asks otherwise.

Measured: scikit-learn's digits, an MLP of two hidden layers, batches of 64; and the bytes of the
standard library's help texts, a transformer: small on CPU, of GPT-2 small's size elsewhere; AdamW.
A figure is one call that trains for as many epochs as take about a second, the same number on both
sides, until loss and state are there. Contestants take turns; ratios are taken round by round.

Also: the mean loss of the last of a fixed number of epochs, and `max_difference`, the largest
difference between parameters after ten steps by four micro-batches and by whole batches; these
steps change a parameter by about 0.01 at most, AdamW's rate being 0.001.
"""

import functools
import math
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import _bare
import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import models
import trainer
from trainer import data, losses

LIBRARY, BARE = "library", "bare JAX"
FLOAT32, ACCUMULATED = "float32", "accumulate=4"
SETTINGS = {
    FLOAT32: {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    ACCUMULATED: {"accumulate": 4},
    "clip_norm=1": {"clip_norm": 1.0},
}
QUICK = FLOAT32, "float16", ACCUMULATED, "clip_norm=1"
"""Settings that have each line run, without compiling all."""

LEAST = 0.95
STEPS = 10
"""After which parameters are compared."""

OPTIMIZER = optax.adamw(1e-3)
FIRST_SCALE, PERIOD = 2.0**15, 2000
"""Of the hand-written loss scale: at first, and finite steps after which it doubles."""


class Case(NamedTuple):
    network: Any
    loss: Any
    source: Any
    settings: tuple[str, ...] = tuple(SETTINGS)
    epochs: int = 1
    """Of the run whose loss is reported."""

    @property
    def steps(self):
        return self.source.size // self.source.batch_size


class Reached(NamedTuple):
    """What a run of some epochs gives."""

    params: Any
    loss: float
    """Mean of the last epoch."""


class Bare(NamedTuple):
    """The state in bare JAX; neither network has variables that are not trained."""

    params: Any
    opt_state: Any
    scale: Any = None
    finite_steps: Any = None


def cases(*, quick):
    """Build the two cases, of sizes that suit the device; an epoch of a text is `STEPS` steps."""
    digits, _ = data.digits(batch_size=64)
    if quick:
        mlp = Case(models.mlp(hidden=(8,)), losses.classification, part(digits, STEPS), QUICK)
        transformer = Case(
            models.transformer(vocabulary=256, context=8, layers=1, heads=1, width=8),
            losses.language_modeling,
            help_texts(batch_size=4, length=8),
            (FLOAT32, ACCUMULATED),
        )
    elif jax.devices()[0].platform == "cpu":
        mlp = Case(models.mlp(), losses.classification, digits, epochs=20)
        transformer = Case(
            models.transformer(vocabulary=256, context=64, layers=2, heads=4, width=128),
            losses.language_modeling,
            help_texts(batch_size=16, length=64),
            epochs=10,
        )
    else:
        mlp = Case(models.mlp(), losses.classification, digits, epochs=20)
        transformer = Case(
            models.transformer(
                vocabulary=50257, context=1024, layers=12, heads=12, width=768, scan=True
            ),
            losses.language_modeling,
            help_texts(batch_size=8, length=1024),
            epochs=10,
        )
    return {"mlp": mlp, "transformer": transformer}


def help_texts(*, batch_size, length):
    """Cut the standard library's help texts into windows of bytes, `STEPS` batches."""
    text = np.frombuffer("\n".join(topics.values()).encode(), np.uint8).astype(np.int32)
    places = length * np.arange(STEPS * batch_size)[:, None] + np.arange(length)
    return data.Arrays({"inputs": text[places], "labels": text[places + 1]}, batch_size)


def part(source, steps):
    """Return the first batches of a source."""
    few = {name: array[: steps * source.batch_size] for name, array in source.arrays.items()}
    return data.Arrays(few, source.batch_size)


def library(case, **setting):
    """Build `run(epochs)`, which trains with `fit`."""
    task = trainer.supervised(case.network, case.loss, OPTIMIZER, **setting)
    start = task.init(jax.random.key(0), case.source.example)
    phase = trainer.training(task.step, case.source)

    def run(epochs):
        state, history = trainer.fit(start, phase, epochs=epochs)
        jax.block_until_ready(state)
        return Reached(state.params, history[-1]["train/loss"])

    return run


def bare(case, **setting):
    """Build `run(epochs)`, which trains in bare JAX, from the same parameters."""
    source, key = case.source, jax.random.key(1)
    task = trainer.supervised(case.network, case.loss, OPTIMIZER)
    start = task.init(jax.random.key(0), source.example)
    first = Bare(start.params, start.opt_state)
    if setting.get("precision") == "float16":
        first = first._replace(scale=jnp.float32(FIRST_SCALE), finite_steps=jnp.int32(0))
    update = by_hand(case.network, **setting)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, arrays, key, number):
        def step(state, places):
            return update(state, _bare.taken(arrays, places))

        order = _bare.shuffled(key, number, source.size, source.batch_size)
        state, losses = lax.scan(step, state, order)
        return state, losses.mean()

    def run(epochs):
        state = jax.tree.map(jnp.copy, first)
        for number in range(epochs):
            state, loss = epoch(state, source.arrays, key, number)
            loss = float(loss)
        jax.block_until_ready(state)
        return Reached(state.params, loss)

    return run


def by_hand(network, *, precision="float32", accumulate=1, clip_norm=None):
    """Write a step out, `(state, batch) -> (state, loss)`."""
    scaling = precision == "float16"

    def cast(leaf):
        return leaf.astype(precision) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def objective(params, batch, scale):
        params, inputs = jax.tree.map(cast, (params, batch["inputs"]))
        logits, _ = network.apply(params, {}, inputs, key=None, train=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["labels"]
        ).mean()
        return loss * scale if scaling else loss, loss

    derive = jax.grad(objective, has_aux=True)

    def derive_by_parts(params, batch, scale):
        def add(sums, micro):
            return jax.tree.map(jnp.add, sums, derive(params, micro, scale)), None

        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
        sums, _ = lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / accumulate, sums)

    def update(state, batch):
        grads, loss = (derive if accumulate == 1 else derive_by_parts)(
            state.params, batch, state.scale
        )
        if scaling:
            grads = jax.tree.map(lambda g: g / state.scale, grads)
        if clip_norm is not None:
            factor = jnp.minimum(1.0, clip_norm / optax.tree.norm(grads))
            grads = jax.tree.map(lambda g: g * factor, grads)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        after = state._replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )
        return (rescaled(state, after, grads) if scaling else after), loss

    return update


def rescaled(before, after, grads):
    """Take a step only where no gradient overflowed, and move the loss scale."""
    finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]).all()
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    steps = jnp.where(finite, before.finite_steps + 1, 0)
    grown = steps >= PERIOD
    factor = jnp.where(finite, jnp.where(grown, 2.0, 1.0), 0.5)
    scale = jnp.clip(before.scale * factor, 1.0, 2.0**24)
    return kept._replace(scale=scale, finite_steps=jnp.where(grown, 0, steps))


def race(case, *, rounds, seconds):
    """Measure both sides at every setting.

    Returns:
        The steps per second of each entrant, one figure a round; the loss that each reached; the
        largest difference that accumulating makes.
    """
    entrants, epochs = {}, {}
    for setting in case.settings:
        sides = {LIBRARY: library, BARE: bare}
        entrants |= {
            (setting, side): make(case, **SETTINGS[setting]) for side, make in sides.items()
        }
    reached = {entrant: run(case.epochs).loss for entrant, run in entrants.items()}  # compiles
    for setting in case.settings:
        once = _measuring.timed(functools.partial(entrants[setting, BARE], 1))
        epochs[setting] = max(2, math.ceil(seconds / once))

    def rate(setting, side):
        taken = _measuring.timed(lambda: entrants[setting, side](epochs[setting]))
        return epochs[setting] * case.steps / taken

    contestants = {entrant: functools.partial(rate, *entrant) for entrant in entrants}
    samples = _measuring.interleaved(contestants, rounds=rounds)
    return samples, reached, difference(case, entrants)


def difference(case, entrants):
    """Return the largest difference of a parameter after `STEPS` steps, accumulated and whole."""
    runs = [entrants[setting, LIBRARY] for setting in (FLOAT32, ACCUMULATED)]
    if case.steps != STEPS:
        short = case._replace(source=part(case.source, STEPS))
        runs = [library(short, **SETTINGS[setting]) for setting in (FLOAT32, ACCUMULATED)]
    whole, accumulated = (run(1).params for run in runs)
    return float(optax.tree.norm(optax.tree.sub(whole, accumulated), ord=np.inf))


def compare(samples, settings):
    """Return the ratios of the library over bare JAX, and of each setting over float32."""
    pairs = {
        f"{setting}: {LIBRARY} / {BARE}": ((setting, LIBRARY), (setting, BARE))
        for setting in settings
    }
    pairs |= {
        f"{LIBRARY}: {setting} / {FLOAT32}": ((setting, LIBRARY), (FLOAT32, LIBRARY))
        for setting in settings
        if setting != FLOAT32
    }
    return {
        what: _measuring.ratio(samples[one], samples[other]) for what, (one, other) in pairs.items()
    }


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (15, 1.0)
    jax.config.update("jax_disable_most_optimizations", options.quick)  # all of it is compiling
    measured, ratios, bars = {}, {}, []
    for name, case in cases(quick=options.quick).items():
        samples, reached, max_difference = race(case, rounds=rounds, seconds=seconds)
        rates = {entrant: _measuring.spread(figures) for entrant, figures in samples.items()}
        measured[name] = {
            "steps/s": {", ".join(entrant): figures for entrant, figures in rates.items()},
            "loss": {", ".join(entrant): loss for entrant, loss in reached.items()},
            "max_difference": max_difference,
        }
        ratios[name] = compare(samples, case.settings)
        bars += [
            _measuring.bar(f"{name}, {what}", described["median"], least=LEAST)
            for what, described in ratios[name].items()
            if what.endswith(BARE)
        ]
        rows = [(", ".join(e), *_measuring.columns(rates[e]), f"{reached[e]:.4f}") for e in samples]
        _measuring.show(f"{name}: steps per second", ("", "median", "quartiles", "loss"), rows)
        rows = [(what, *_measuring.columns(figures)) for what, figures in ratios[name].items()]
        _measuring.show(f"{name}: ratios", ("", "median", "quartiles"), rows)
        _measuring.CONSOLE.print(
            f"{name}: {ACCUMULATED} differs by {max_difference:.2g} after {STEPS} steps"
        )
    _measuring.finish(
        options,
        "precision",
        unit="steps/s; loss in nats; max_difference as the parameters",
        warm_up="compilation, the epochs of the loss, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
