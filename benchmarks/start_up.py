"""How long does a run take until its first epoch is done, cold and with a warm compilation cache?

Baseline: the same network, optimizer, data and cache settings in bare JAX (`_bare.py`), one
compiled scan per epoch.

Measured: the digits MLP, each start in a process of its own (`_first_epoch.py`), contestants taking
turns. `compile` is tracing and all that the library does before its first epoch; a start is init,
compile and first epoch. A warm start finds what the previous one compiled; a cold one has no cache.
A resumed one is warm, restores a checkpoint before it compiles, and saves one after. Another has a
phase of 2,000 metrics, and is cold. The digits example is timed from its process's start to its
first line of metrics, warm.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _measuring

SCRIPT = Path(__file__).parent / "_first_epoch.py"
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
PARTS = ("import", "data", "init", "compile", "first epoch")
START = "init + compile + first epoch"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""As users have it: what is imported was compiled to bytecode by an earlier start."""


def start(contestant, cache, parts):
    """Run one start and keep its parts; give the seconds of init, compile and first epoch."""
    command = [sys.executable, str(SCRIPT), contestant, *([cache] if cache else [])]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    taken = json.loads(run.stdout.splitlines()[-1])
    parts.append(taken)
    return taken["init"] + taken["compile"] + taken["first epoch"]


def start_example(folder, numbers):
    """Run the digits example anew; give the seconds until its first line of metrics."""
    began, environment = time.perf_counter(), ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    run = f"{folder}/run{next(numbers)}"
    environment["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--epochs", "1", "--run", run],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    first = next(line for line in process.stdout if line.startswith("epoch 1/1"))
    seconds = time.perf_counter() - began
    assert "val/loss" in first, first
    process.communicate()
    return seconds


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, kinds = (1, ["warm"]) if options.quick else (5, ["cold", "warm"])
    parts, contestants = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        only = {"resumed": ["warm"], "metrics": ["cold"]}
        for contestant in ("library", "resumed", "metrics", "bare"):
            for kind in only.get(contestant, kinds):
                entrant = f"{contestant}, {kind}"
                cache = f"{directory}/{contestant}" if kind == "warm" else None
                parts[entrant] = []
                contestants[entrant] = functools.partial(start, contestant, cache, parts[entrant])
        contestants["example"] = functools.partial(start_example, directory, itertools.count())
        samples = _measuring.interleaved(contestants, rounds=rounds, warm_up=1)
    measured = {
        entrant: {
            START: _measuring.spread(samples[entrant]),
            **{part: _measuring.spread([t[part] for t in taken[1:]]) for part in PARTS},
        }
        for entrant, taken in parts.items()
    }
    ratios = {
        f"library / bare, {kind}": _measuring.ratio(
            samples[f"library, {kind}"], samples[f"bare, {kind}"]
        )
        for kind in kinds
    }
    rows = []
    for entrant, figures in measured.items():
        cells = [_measuring.text(figures[part]["median"]) for part in PARTS]
        rows.append((entrant, *cells, *_measuring.columns(figures[START])))
    _measuring.show("Seconds, medians", ("", *PARTS, START, "quartiles"), rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show(f"Ratios of {START}", ("", "median", "quartiles"), rows)
    example = _measuring.spread(samples["example"])
    _measuring.show(
        "Seconds, the digits example",
        ("", "median", "quartiles"),
        [("first line", *_measuring.columns(example))],
    )
    measured["example"] = {"first line of metrics": example}
    warm = measured["library, warm"][START]["median"]
    many = measured["metrics, cold"]["compile"]["median"]
    _measuring.finish(
        options,
        "start_up",
        unit="seconds",
        warm_up="one start of each, which fills the caches",
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[
            _measuring.bar(f"library, warm: {START}, seconds", warm, most=0.8),
            _measuring.bar(
                "library / bare, warm", ratios["library / bare, warm"]["median"], most=1.1
            ),
            _measuring.bar("example: first line of metrics, seconds", example["median"], most=3),
            _measuring.bar("2,000 metrics: compile, seconds", many, most=3),
        ],
    )


if __name__ == "__main__":
    main()
