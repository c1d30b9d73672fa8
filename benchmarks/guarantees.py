"""What does each trainer promise, and does it hold when its process is killed?

Baseline: this library. Lightning, Keras on JAX, the Trainer of transformers, and a loop by hand
(optax and orbax) do the same, each with its own documented means; those that are not installed are
named. `guarantee_trials/` has each, in a module that says which means.

Tried: an MLP with dropout on scikit-learn's digits, 22 batches of 64 an epoch, two threads.
Processes kill themselves with SIGKILL after a step within an epoch, and are started again: the
final parameters are compared with those of a run that was not killed, by their bits and by the
norm of the difference over the norm. A trainer that can save within an epoch is tried with a save
after each half and with one after each epoch, and its better result counts. Early stopping watches
a given sequence of losses, so that it has one right answer. Damage: bits are flipped at random
places of the newest checkpoint, or its largest file is cut. What was restored is told by the step
at which a process begins and by its final bits.

Also: the time of an epoch with five callbacks that do nothing less the time without, and steps per
second: those of `peers.py` at usual settings, or, where it has none, from the same epochs.

A full run writes its table into docs/explanation/performance.md.
"""

import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import _documents
import _guarantee_table
import _measuring
import numpy as np
from _starting import ContestantError
from _trials import TrainerProcess, load_params
from guarantee_trials.trial import BATCHES

PAGE = _documents.ROOT / "docs" / "explanation" / "performance.md"
LIBRARY = "Entracte"
KILLS = 29, 40, 71
"""Steps after which runs of four epochs are killed, the first epoch saved."""
STOPPING_KILLS = 51, 77
"""The same for runs with early stopping, which ends them after five epochs or six."""
DAMAGED_AT = 60
FLIPS = 4
PAUSE = 2.0
"""Seconds before a kill, where the newest checkpoint has to be complete."""
MISSPELT = "los"


class Entrant(NamedTuple):
    module: str
    means: str
    packages: tuple[str, ...] = ()
    """That are needed, as they are imported."""
    rate: str = ""
    """Its name among the contestants of `peers`."""
    saves_within: bool = True
    """Whether it can save within an epoch."""


ENTRANTS = {
    LIBRARY: Entrant(
        "entracte_trainer",
        "`save_checkpoints`, `stop_early`; the same call resumes",
        rate="Entracte, `fit`",
        saves_within=False,
    ),
    "Lightning": Entrant(
        "lightning_trainer",
        "`seed_everything`, `StatefulDataLoader`, `ModelCheckpoint(save_last=True)`,"
        ' `EarlyStopping`, `fit(ckpt_path="last")`',
        ("torch", "torchdata", "lightning"),
        rate="Lightning, defaults",
    ),
    "Keras on JAX": Entrant(
        "keras_trainer",
        "`set_random_seed`, `BackupAndRestore(double_checkpoint=True)`, `EarlyStopping`",
        ("keras",),
        rate="Keras on JAX, defaults",
    ),
    "HF Trainer": Entrant(
        "huggingface_trainer",
        "`seed`, `data_seed`, `train(resume_from_checkpoint=True)`, `EarlyStoppingCallback` with"
        " `restore_callback_states_from_checkpoint=True`",
        ("torch", "transformers", "accelerate"),
    ),
    "JAX loop by hand": Entrant(
        "handwritten_loop",
        "optax, `orbax.checkpoint.CheckpointManager`, keys folded from the step, Flax's"
        " `EarlyStopping` as a variable of the loop; callbacks are lines in the order written",
    ),
}
PACKAGES = "torchdata", "transformers", "accelerate"


def try_resume(process, folder, *, saves, kills):
    """Kill and resume runs; return (how many have the same bits, largest relative distance)."""
    settings = {"epochs": 4, "every": saves}
    process.must("train", folder / "whole", **settings)
    process.must("train", folder / "again", **settings)
    wanted = load_params(folder / "whole")
    if not np.array_equal(wanted, load_params(folder / "again")):
        raise ContestantError("two runs that were not killed differ")
    off = []
    for step in kills:
        run = folder / f"killed {step}"
        process.kill(run, fatal=step, **settings)
        process.must("train", run, **settings)
        off.append(float(np.linalg.norm(load_params(run) - wanted) / np.linalg.norm(wanted)))
    return sum(distance == 0 for distance in off), max(off)


def try_best_resume(process, folder, entrant, kills):
    """Try both ways to save, until one holds; describe the better one."""
    found = []
    for saves in ("half", "epoch") if entrant.saves_within else ("epoch",):
        found.append(try_resume(process, folder / saves, saves=saves, kills=kills))
        if found[-1][0] == len(kills):
            break
    same, off = max(found, key=lambda one: (one[0], -one[1]))
    return _guarantee_table.describe_resume(same, len(kills), off)


def try_memory(process, folder, kills):
    """Kill runs while early stopping counts; describe whether they stop where they should."""
    settings = {"epochs": 10, "watched": "loss"}
    wanted = process.must("train", folder / "whole", **settings)["steps"] / BATCHES
    stopped = []
    for step in kills:
        run = folder / f"killed {step}"
        process.kill(run, fatal=step, pause=PAUSE, **settings)
        found = process.must("train", run, **settings)
        stopped.append((found["began"] + found["steps"]) / BATCHES)
    return _guarantee_table.describe_memory(wanted, stopped)


def try_damage(process, folder, damages):
    """Damage the newest checkpoint of a killed run in each way, and resume; return outcomes."""
    settings = {"epochs": 4, "every": "half"}
    process.kill(folder, fatal=DAMAGED_AT, pause=PAUSE, **settings)
    newest = Path(process.must("find_newest", folder)["path"])
    kept = shutil.copytree(folder / "saved", folder / "kept")
    control = process.must("train", folder, **settings)
    wanted, outcomes = load_params(folder), []
    for damage in damages:
        shutil.rmtree(folder / "saved")
        shutil.copytree(kept, folder / "saved", symlinks=True)
        damage(newest)
        found = process.do("train", folder, **settings)
        if found.status or "error" in found.answer:
            outcomes.append("error")
        elif found.answer["began"] == control["began"]:
            same = np.array_equal(load_params(folder), wanted)
            outcomes.append("no effect" if same else "silently wrong")
        elif 0 < found.answer["began"] < control["began"]:
            outcomes.append("the one before is used")
        else:
            outcomes.append("silently wrong" if found.answer["began"] else "begins anew")
    return outcomes


def list_files(path):
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def flip_bit(seed):
    """Return a function that flips one bit of a checkpoint, each equally likely."""

    def damage(checkpoint):
        files, random = list_files(checkpoint), np.random.default_rng(seed)
        place = int(random.integers(sum(file.stat().st_size for file in files)))
        for file in files:
            if place < file.stat().st_size:
                break
            place -= file.stat().st_size
        content = bytearray(file.read_bytes())
        content[place] ^= 1 << int(random.integers(8))
        file.write_bytes(content)

    return damage


def truncate(checkpoint):
    """Cut the largest file of a checkpoint in half."""
    file = max(list_files(checkpoint), key=lambda one: one.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def list_trials(*, quick):
    """Return after which steps processes are killed, and how many bits are flipped."""
    if quick:
        return {"kills": KILLS[:1], "stopping": STOPPING_KILLS[:1], "flips": 1}
    return {"kills": KILLS, "stopping": STOPPING_KILLS, "flips": FLIPS}


def try_all(process, folder, entrant, *, quick):
    """Return the cells of a trainer, and its seconds of an epoch with no and five callbacks."""
    tried = list_trials(quick=quick)
    done = process.do("train", folder / "misspelt", epochs=2, watched=MISSPELT)
    order = process.must("show_order", folder / "order")
    test = process.must("test_callback", folder / "test")
    flips = [flip_bit(seed) for seed in range(tried["flips"])]
    outcomes = try_damage(process, folder / "damage", [*flips, truncate])
    cells = {
        "resume": try_best_resume(process, folder, entrant, tried["kills"]),
        "memory": try_memory(process, folder / "memory", tried["stopping"]),
        "flipped": _guarantee_table.describe_damage(outcomes[:-1]),
        "truncated": outcomes[-1],
        "misspelt": _guarantee_table.describe_misspelt(
            done.answer, done.printed, MISSPELT, BATCHES
        ),
        "logger": "yes" if order["logger"] else "no",
        "checkpoint": "yes" if order["checkpoint"] else "no",
        "test": _guarantee_table.describe_test(test["lines"], test["stand-ins"]),
    }
    epochs, rounds = (2, 1) if quick else (20, 7)
    settings = {"epochs": epochs, "rounds": rounds, "numbers": [0, 5]}
    seconds = process.must("time_epochs", folder / "times", **settings)["seconds"]
    return cells, seconds


def add_rates(record, raced):
    """Add the cells of rates: from the race where a trainer takes part, or from own epochs.

    Args:
        record: with `cells`, and `ratios` of an epoch's seconds to the library's.
        raced: contestant of `peers` to its described steps per second.
    """
    own = raced.get(ENTRANTS[LIBRARY].rate)
    for trainer, cells in record["cells"].items():
        rate = raced.get(ENTRANTS[trainer].rate)
        if rate and own:
            cells["rate"] = f"{rate['median'] / own['median']:.2g}"
        elif trainer in record["ratios"]:
            cells["rate"] = f"{1 / record['ratios'][trainer]['median']:.2g}"


def main():
    options = _measuring.arguments(__doc__).parse_args()
    record = {"cells": {}, "means": {}, "measured": {}, "ratios": {}, "left_out": {}, "bars": []}
    record["tried"] = list_trials(quick=options.quick)
    seconds = {}
    for trainer, entrant in ENTRANTS.items():
        missing = [name for name in entrant.packages if not importlib.util.find_spec(name)]
        if missing:
            record["left_out"][trainer] = f"{', '.join(missing)} is not installed"
            continue
        with tempfile.TemporaryDirectory() as folder:
            process = TrainerProcess(entrant.module, f"{folder}/cache")
            try:
                cells, seconds[trainer] = try_all(
                    process, Path(folder), entrant, quick=options.quick
                )
            except ContestantError as error:
                record["left_out"][trainer] = str(error)
                continue
            finally:
                process.close()
        none, five = seconds[trainer]
        beyond = [more - less for less, more in zip(none, five, strict=True)]
        cells["callbacks"] = _guarantee_table.describe_callbacks(beyond)
        record["cells"][trainer], record["means"][trainer] = cells, entrant.means
        record["measured"][trainer] = {
            "seconds of an epoch": _measuring.spread(none),
            "seconds of five callbacks, beyond none": _measuring.spread(beyond),
        }
        if LIBRARY in seconds:
            record["ratios"][trainer] = _measuring.ratio(none, seconds[LIBRARY][0])
        _measuring.CONSOLE.print(f"{trainer}: {cells}")
    race = _measuring.RESULTS / "peers.json"
    add_rates(record, json.loads(race.read_text())["measured"]["MLP"] if race.exists() else {})
    environment = _measuring.environment()
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            environment["versions"][package] = importlib.metadata.version(package)
    table = _guarantee_table.render({**environment, **record})
    _measuring.CONSOLE.print(table)
    if not options.quick:
        _documents.insert(PAGE, "guarantees", table)
    _measuring.finish(
        options,
        "guarantees",
        unit="words; seconds of an epoch of 22 steps",
        warm_up="one call of 20 epochs with each number of callbacks",
        repeats=1 if options.quick else 7,
        **record,
        versions=environment["versions"],
    )


if __name__ == "__main__":
    main()
