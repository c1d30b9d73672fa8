"""What does saving cost a run, and for how long does one save delay training?

Baselines: the same run without saving; Orbax's `CheckpointManager` with its asynchronous defaults;
`np.savez` of a host copy in a thread.

Measured first: whole runs of `fit`, with epochs of matrix products that keep all cores busy, and a
state of 16 arrays; 10 MB with epochs of 138 ms, 400 MB with epochs 40 times as long. A run ends
when its last save is durable. Whole runs take turns; ratios are over the run without saving, round
by round.

Then single saves, each followed by one step that updates every array in donated buffers: how long
the two take beyond a usual step, which is the blocking time plus the delay of the next step. A save
is durable before the next begins. The first save of each is reported separately, since it allocates
its buffers. `--gpu` takes single saves of 4 GB alone.
"""

import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import psutil
from jax import lax

import hooks
import trainer

LEAVES, SIDE = 16, 512
PEAK = 5
"""Times the size of the state that measuring may take of memory; 4.6 was seen, in 2 GB."""
NONE, DEFAULTS, FORCED = "no saving", "save_checkpoints, defaults", "save_checkpoints, every epoch"
SAVEZ, ORBAX = "np.savez in a thread, every epoch", "Orbax, every epoch"
OURS, OTHERS = "Checkpoints.save", "Orbax, save"


class Run(NamedTuple):
    """A loop to save from."""

    megabytes: float
    epoch_seconds: float
    epochs: int
    rounds: int


class Save(NamedTuple):
    """A state to save."""

    megabytes: float
    repeats: int


RUNS = [Run(10, 0.138, epochs=120, rounds=3), Run(400, 2.0, epochs=15, rounds=1)]
SAVES = [Save(10, repeats=15), Save(400, repeats=7), Save(4000, repeats=3)]
GPU_SAVES = [Save(4000, repeats=2)]
QUICK_RUNS, QUICK_SAVES = [Run(1, 0.02, epochs=4, rounds=1)], [Save(1, repeats=2)]


def state_of(megabytes):
    """Build a state of random numbers, of 16 arrays and so many MB."""
    rows = max(1, round(megabytes * 1e6 / LEAVES / 4096))
    keys = jax.random.split(jax.random.key(0), LEAVES)
    params = {f"layer_{n}": jax.random.uniform(key, (rows, 1024)) for n, key in enumerate(keys)}
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))


def busy(products):
    """Build a phase of so many matrix products, which changes all arrays: the rest is not saved."""

    def run(state, _):
        noise = jax.random.normal(state.key("noise"), (SIDE, SIDE))

        def multiply(_, x):
            x = x @ noise
            return x / jnp.sqrt(jnp.mean(x * x))

        change = 1e-6 * lax.fori_loop(0, products, multiply, noise).mean()
        params = jax.tree.map(lambda w: w * 0.999 + change, state.params)
        return state.replace(params=params, step=state.step + 1), None, {"change": change}

    return trainer.Phase("train", run)


def phase_of(state, seconds):
    """Find how many products take an epoch that long, and make the phase of them."""
    products = 16
    for _ in range(2):
        state_now, history = trainer.fit(state, busy(products), epochs=5)
        jax.block_until_ready(state_now)
        taken = np.median([metrics["time/epoch_seconds"] for metrics in history])
        products = max(1, round(products * min(seconds / taken, 32)))
    return busy(products)


def savez_in_a_thread(folder):
    """Write each epoch's host copy with numpy, one at a time, three files by turns."""
    pool = ThreadPoolExecutor(1)
    waiting = []

    def save(state, metrics):
        if waiting:
            waiting.pop().result()
        # The copy of a view of one's own: one that the state keeps would prevent its donation.
        arrays = {name: np.array(w.addressable_data(0)) for name, w in state.params.items()}
        waiting.append(pool.submit(np.savez, f"{folder}/{int(state.epoch) % 3}.npz", **arrays))
        return state

    return hooks.Hook(save, "savez", stage="save", close=lambda error: pool.shutdown())


def orbax_manager(folder, keep):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def orbax_every_epoch(folder):
    """Save each epoch with Orbax, which writes in the background; three are kept."""
    manager = orbax_manager(folder, keep=3)

    def save(state, metrics):
        manager.save(int(state.epoch), args=ocp.args.StandardSave(state.params))
        return state

    return hooks.Hook(save, "orbax", stage="save", close=lambda error: manager.close())


SAVING = {
    NONE: lambda folder: (),
    DEFAULTS: hooks.save_checkpoints,
    FORCED: functools.partial(hooks.save_checkpoints, max_cost=None),
    SAVEZ: savez_in_a_thread,
    ORBAX: orbax_every_epoch,
}


def whole_run(start, phase, epochs, make_hooks, directory):
    """Return the seconds of a run, until all that it saved is durable."""

    def run():
        state, _ = trainer.fit(start, phase, epochs=epochs, hooks=make_hooks(folder))
        jax.block_until_ready(state)

    with tempfile.TemporaryDirectory(dir=directory) as folder:
        return _measuring.timed(run)


def measure_run(size, directory):
    """Return each contestant's seconds of a run."""
    start = state_of(size.megabytes)
    phase = phase_of(start, size.epoch_seconds)
    for make_hooks in SAVING.values():
        whole_run(start, phase, 2, make_hooks, directory)
    contestants = {
        name: functools.partial(whole_run, start, phase, size.epochs, make_hooks, directory)
        for name, make_hooks in SAVING.items()
    }
    return _measuring.interleaved(contestants, rounds=size.rounds, warm_up=0)


@functools.partial(jax.jit, donate_argnums=0)
def advance(params):
    """Update every array in its own buffer."""
    return jax.tree.map(lambda w: w * 0.999, params)


def savers(directory):
    """Return name to (save, wait, close); `save` takes a state, `wait` ends when it is durable."""
    ours = trainer.Checkpoints(Path(directory) / "entracte", keep=1)
    orbax = orbax_manager(Path(directory) / "orbax", keep=1)

    def save_with_orbax(state):
        orbax.save(int(state.epoch), args=ocp.args.StandardSave(state.params))

    return {
        OURS: (ours.save, ours.wait, ours.close),
        OTHERS: (save_with_orbax, orbax.wait_until_finished, orbax.close),
    }


def measure_save(size, directory):
    """Return each saver's milliseconds beyond a usual step, its blocking part, the first save."""
    state, number = state_of(size.megabytes), 0
    blocked = {OURS: [], OTHERS: []}

    def step():
        nonlocal state
        state = state.replace(params=jax.block_until_ready(advance(state.params)))

    def stall(name, save, wait):
        nonlocal state, number
        number += 1
        state = state.replace(epoch=jnp.int32(number))
        step()
        usual = np.median([_measuring.timed(step) for _ in range(3)])
        blocking = _measuring.timed(lambda: save(state))
        following = _measuring.timed(step)
        wait()
        blocked[name].append(blocking * 1e3)
        return (blocking + following - usual) * 1e3

    with tempfile.TemporaryDirectory(dir=directory) as folder:
        made = savers(folder)
        contestants = {
            name: functools.partial(stall, name, save, wait)
            for name, (save, wait, _) in made.items()
        }
        first = {name: measure() for name, measure in contestants.items()}
        samples = _measuring.interleaved(contestants, rounds=size.repeats, warm_up=0)
        for _, _, close in made.values():
            close()
    return samples, {name: figures[1:] for name, figures in blocked.items()}, first


def compare_runs(size, directory):
    """Measure whole runs, print them, and give (measured, ratios, bars)."""
    title = f"{size.megabytes:g} MB, {size.epochs} epochs of {size.epoch_seconds:g} s"
    samples = measure_run(size, directory)
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()}
    ratios = {
        f"{name} / {NONE}": _measuring.ratio(samples[name], samples[NONE])
        for name in samples
        if name != NONE
    }
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    seconds = _measuring.text(measured[NONE]["median"])
    _measuring.show(f"{title}: {seconds} s without saving", ("", "median", "quartiles"), rows)
    limits = {DEFAULTS: 1.05, FORCED: 1.35} if size.megabytes == 10 else {DEFAULTS: 1.05}
    bars = [
        _measuring.bar(f"{size.megabytes:g} MB: {what}", ratios[what]["median"], most=limit)
        for what, limit in ((f"{name} / {NONE}", limit) for name, limit in limits.items())
    ]
    return {title: measured}, {title: ratios}, bars


def compare_saves(size, directory):
    """Measure single saves, print them, and give (measured, ratios, bars)."""
    title = f"{size.megabytes:g} MB, one save: milliseconds beyond a step"
    samples, blocked, first = measure_save(size, directory)
    measured = {
        name: {
            "blocking and delay": _measuring.spread(samples[name]),
            "blocking": _measuring.spread(blocked[name]),
            "first": first[name],
        }
        for name in samples
    }
    ratios = {f"{OTHERS} / {OURS}": _measuring.ratio(samples[OTHERS], samples[OURS])}
    rows = [
        (
            name,
            *_measuring.columns(figures["blocking and delay"]),
            _measuring.text(figures["blocking"]["median"]),
            _measuring.text(figures["first"]),
        )
        for name, figures in measured.items()
    ]
    header = ("", "blocking and delay", "quartiles", "of it blocking", "first save")
    _measuring.show(title, header, rows)
    bars = []
    if size.megabytes == 4000:
        stall = measured[OURS]["blocking and delay"]["median"]
        bars = [_measuring.bar("4 GB: blocking and delay of a save, ms", stall, most=600)]
    return {title: measured}, {title: ratios}, bars


def main():
    parser = _measuring.arguments_with_gpu(__doc__)
    parser.add_argument("--directory", type=Path, help="where to save; a temporary one if absent")
    options = parser.parse_args()
    runs, saves = (QUICK_RUNS, QUICK_SAVES) if options.quick else (RUNS, SAVES)
    if options.gpu:
        runs, saves = [], saves if options.quick else GPU_SAVES
    measured, ratios, bars, notes = {}, {}, [], []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for compare, size in [(compare_runs, r) for r in runs] + [
            (compare_saves, s) for s in saves
        ]:
            available = psutil.virtual_memory().available / 1e6
            if available < PEAK * size.megabytes:
                notes.append(
                    f"{size.megabytes:g} MB skipped: it takes {PEAK} times as much free memory; "
                    f"there is {available:,.0f} MB"
                )
                continue
            found = compare(size, directory)
            measured |= found[0]
            ratios |= found[1]
            bars += found[2]
    _measuring.finish(
        options,
        "checkpoint_stall",
        unit="seconds of a run; milliseconds of a save",
        warm_up="two epochs of each run; the first save of each",
        repeats={"runs": [run.rounds for run in runs], "saves": [save.repeats for save in saves]},
        measured=measured,
        ratios=ratios,
        bars=bars,
        notes=notes,
    )


if __name__ == "__main__":
    main()
