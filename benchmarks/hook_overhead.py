"""How many microseconds of an event does a hook take?

Baselines: an event without hooks, for the hooks; `jax.device_get` of a dict of ten scalars, and
`float()` of each, for the read of ten packed metrics.

Measured: events as the loop runs them, `HookRunner.run("epoch", state, metrics)`, including the
checks of what hooks return, one after another on a small state and ten metrics. Where the name
mentions leaves or Adam, the state has sixty arrays of 4 KB, and Adam's 122 more. A figure is the
mean over a burst of events; a worker thread empties its queue between bursts, outside the
measurement. `record_times` listens only while it is measured, since it hears all others. The reads
take the metrics of a phase that has ended, new ones each time, since JAX caches what was read.
"""

import functools
import io
import itertools
import tempfile
import time
import types
from pathlib import Path

import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

import hooks
import models
import trainer
from hooks.monitoring.timing import Stopwatch
from trainer import data, losses
from trainer.loop.events import HookRunner
from trainer.loop.hook_states import init_hook_states

NAMES = tuple(f"metric_{number}" for number in range(10))
EMPTY, FIVE = "chain()", "chain of five no-op hooks"
LAYERS = {f"{FIVE}, {6 * n + 2} leaves": n for n in (2, 33)}
TIMED = f"{FIVE}, heard by record_times"
PACKED, AS_DICT, ONE_BY_ONE = (
    "ten metrics, packed",
    "ten, device_get of a dict",
    "ten, float() of each",
)


def nothing(state, metrics):
    """Be a hook that does nothing."""
    return state


def small_state(leaves=1):
    """Build a state of so many parameters, `[32, 32]` each."""
    keys = jax.random.split(jax.random.key(0), leaves)
    params = {f"layer_{n}": jax.random.normal(key, (32, 32)) for n, key in enumerate(keys)}
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))


def layered(layers):
    """Build a state of so many layers, a kernel and a bias each, and Adam's of each."""
    layer = {"kernel": jnp.ones((32, 32)), "bias": jnp.ones(32)}
    params = {f"layer_{n}": jax.tree.map(jnp.copy, layer) for n in range(layers)}
    opt_state = optax.adam(1e-3).init(params)
    return trainer.TrainState.create(
        params=params, opt_state=opt_state, carry={"x": jnp.ones(2)}, rng=jax.random.key(0)
    )


def optimized(optimizer):
    """Build a state of sixty parameters and an optimizer's state."""
    state = small_state(60)
    return state.replace(opt_state=optimizer.init(state.params))


def falling():
    """Build a hook that scores a number which falls at each event."""
    numbers = itertools.count(0, -1)
    return hooks.writes("falling")(
        lambda state, metrics: state.replace(scores={**state.scores, "falling": next(numbers)})
    )


def controlling():
    """Return (hooks, state, events in a burst) by name, of hooks that set hyperparameters."""
    adam = optimized(optax.inject_hyperparams(optax.adam)(learning_rate=1e-3))
    frozen = optimized(trainer.optimizers.frozen(optax.adam(1e-3)))
    plateau = hooks.reduce_on_plateau(f"train/{NAMES[2]}", mode="min", patience=10**9)
    numbers = itertools.count()
    changing = hooks.set_hyperparams(learning_rate=lambda epoch: next(numbers))
    schedule = hooks.set_hyperparams(learning_rate=optax.cosine_decay_schedule(1.0, 10))
    better = hooks.chain(falling(), hooks.keep_best("falling", mode="min"))
    return {
        "reduce_on_plateau, none due": (plateau, adam, 100),
        "set_hyperparams, Adam, another value": (changing, adam, 20),
        "set_hyperparams, Adam, cosine of optax": (schedule, adam, 20),
        "unfreeze_at, Adam, live already": (hooks.unfreeze_at(1), frozen, 20),
        "swa, 60 leaves": (hooks.swa(start=1), small_state(60), 20),
        "keep_best, no better": (
            hooks.keep_best(f"train/{NAMES[2]}", mode="min"),
            small_state(60),
            100,
        ),
        "keep_best, better, 60 leaves": (better, small_state(60), 20),
        "time_limit": (hooks.time_limit(10**9), small_state(), 100),
    }


def ten_metrics():
    """Build what an epoch of 22 steps reports: ten metrics, and the trace of each."""
    times = {"time/epoch_seconds": 0.01, "time/steps_per_second": 2200.0}
    values = {f"train/{name}": 1.0 / (2 + n) for n, name in enumerate(NAMES[2:])}
    traces = {name: np.full(22, value, np.float32) for name, value in values.items()}
    return trainer.Metrics({**values, **times}, steps=traces, epochs=100)


def linear():
    """Build a linear network."""

    def init(key, inputs):
        return {"w": jnp.zeros((inputs.shape[-1], 10))}, {}

    def apply(params, model_state, inputs, *, key, train):
        return inputs @ params["w"], model_state

    return models.Network(init, apply)


def evaluated(directory):
    """Build two tiny evaluations and a state for them: 64 examples, a linear network."""
    arrays = {"inputs": np.ones((64, 8), np.float32), "labels": np.arange(64) % 10}
    source = data.Arrays(arrays, 64)
    task = trainer.supervised(linear(), losses.classification, optax.sgd(0.1))
    lines = hooks.JsonLines(directory / "mistakes.jsonl")
    mistakes = hooks.show_mistakes(task.outputs, source, lines)
    state = task.init(jax.random.key(0), source.example)
    return hooks.evaluate(trainer.evaluation(task.measure, source)), mistakes, state


def sampling(directory):
    """Build a hook that generates after two prompts, and the state of its decoder."""
    decoder = models.transformer(vocabulary=256, context=64, layers=2, heads=4, width=64)
    letters = types.SimpleNamespace(encode=lambda text: [*text.encode()], decode=str)
    params, _ = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    lines = hooks.JsonLines(directory / "samples.jsonl")
    samples = hooks.show_samples(decoder, letters, ["to be", "or not"], lines, length=32)
    return samples, trainer.TrainState.create(params=params, rng=jax.random.key(0))


def contenders(directory):
    """Return name to (hooks, state, events in a burst)."""
    state = small_state()
    plain = rich.console.Console(file=io.StringIO(), force_terminal=False)
    evaluation, mistakes, evaluated_state = evaluated(directory)
    run = trainer.runs.Run(directory / "recorded")
    named = {
        EMPTY: hooks.chain(),
        FIVE: hooks.chain(*[nothing] * 5),
        "every(5, no-op)": hooks.every(5, nothing),
        "every_steps(100, no-op)": hooks.every_steps(100, nothing),
        "when(never, no-op)": hooks.when(lambda state, metrics: False, nothing),
        "once(no-op)": hooks.once(nothing),
        "guard(no-op)": hooks.guard(nothing),
        "stop_early": hooks.stop_early(f"train/{NAMES[2]}", mode="min", patience=10**9),
        "stop_on_nan": hooks.stop_on_nan(),
        "log_metrics(JsonLines)": hooks.log_metrics(hooks.JsonLines(directory / "log.jsonl")),
        "log_metrics(Console), no terminal": hooks.log_metrics(hooks.Console(console=plain)),
        "watch_system": hooks.watch_system(batch_size=64),
        "heartbeat": hooks.heartbeat(directory / "alive.json"),
        "heartbeat, of a recorded run": hooks.heartbeat(run),
        "request_evaluation, no checkpoint complete": hooks.request_evaluation(run, "full"),
        "collect_scores, nothing new": hooks.collect_scores(run, "full"),
        "save_checkpoints, not due": hooks.save_checkpoints(directory / "run", max_cost=1e-9),
    }
    entrants = {name: (hook, state, 100) for name, hook in named.items()}
    for name, layers in LAYERS.items():
        entrants[name] = hooks.chain(*[nothing] * 5), layered(layers), 100
    board = hooks.log_metrics(hooks.TensorBoard(directory / "board"))
    entrants["log_metrics(TensorBoard)"] = board, state, 10
    database = hooks.log_metrics(hooks.Database(run))
    entrants["log_metrics(Database)"] = database, state, 10
    entrants["background(observer)"] = hooks.background(hooks.observe(nothing)), state, 1
    entrants["average_params, 60 leaves"] = hooks.average_params(), small_state(60), 20
    entrants["evaluate, 64 examples"] = evaluation, evaluated_state, 20
    entrants["show_mistakes, 8 of 64 examples"] = mistakes, evaluated_state, 10
    entrants["show_samples, 2 of 32 tokens"] = *sampling(directory), 2
    return entrants | controlling()


def events(hook, state, burst):
    """Build a measurement of microseconds an event, and what ends it."""
    running = HookRunner(hook, ["train"])
    metrics = ten_metrics()
    state, _ = running.run("start", init_hook_states(running.hooks, state), trainer.Metrics())
    state, _ = running.run("epoch", state, metrics)  # compiles, and saves the first checkpoint

    def measure():
        nonlocal state
        running.flush()
        began = time.perf_counter()
        for _ in range(burst):
            state, _ = running.run("epoch", state, metrics)
        jax.block_until_ready((state.params, state.hook_state))
        return (time.perf_counter() - began) / burst * 1e6

    return measure, running.close


def timed(measure):
    """Build a measurement during which `record_times` listens."""

    def heard():
        watch = Stopwatch()
        try:
            return measure()
        finally:
            watch.stop()

    return heard


def reads(make, read, repeats):
    """Build a measurement of microseconds a read, each of something new that is there already."""

    def measure():
        seconds = 0.0
        for _ in range(repeats):
            made = jax.block_until_ready(make())
            seconds += _measuring.timed(functools.partial(read, made))
        return seconds / repeats * 1e6

    return measure


def readings(repeats):
    """Return the ways to read ten scalars: as a phase's metrics, and without them."""
    state = small_state()

    def run(state, _):
        numbers = {name: state.params["layer_0"][0, n] for n, name in enumerate(NAMES)}
        return state.replace(step=state.step + 1), None, numbers

    phase = trainer.Phase("train", run)
    program = phase.get_compiled(state, None, donate=False)
    compute = jax.jit(lambda state: run(state, None)[2])

    def packed():
        return program.run(trainer.state.strip_host_fields(state), None)[2]

    def read(numbers):
        trainer.phases.phase.PendingMetrics(phase, [(program, numbers)]).read()

    def read_dict(numbers):
        return {name: float(value) for name, value in jax.device_get(numbers).items()}

    def read_each(numbers):
        return {name: float(value) for name, value in numbers.items()}

    return {
        PACKED: reads(packed, read, repeats),
        AS_DICT: reads(lambda: compute(state), read_dict, repeats),
        ONE_BY_ONE: reads(lambda: compute(state), read_each, repeats),
    }


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds = 3 if options.quick else 200
    with tempfile.TemporaryDirectory() as directory:
        made = {name: events(*one) for name, one in contenders(Path(directory)).items()}
        contestants = {name: measure for name, (measure, _) in made.items()} | readings(20)
        contestants[TIMED] = timed(contestants[FIVE])
        samples = _measuring.interleaved(contestants, rounds=rounds, warm_up=2)
        for _, close in made.values():
            close()
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()}
    ratios = {
        f"{other} / {PACKED}": _measuring.ratio(samples[other], samples[PACKED])
        for other in (AS_DICT, ONE_BY_ONE)
    }
    rows = [(name, *_measuring.columns(figures)) for name, figures in measured.items()]
    _measuring.show("Microseconds an event, or a read", ("", "median", "quartiles"), rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show("Ratios", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "hook_overhead",
        unit="microseconds",
        warm_up="an event, and two rounds",
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[_measuring.bar(FIVE, measured[FIVE]["median"], most=10)],
    )


if __name__ == "__main__":
    main()
