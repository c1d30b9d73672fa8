"""How long does a run take until its first epoch is done, cold and with a warm compilation cache?

Baseline: the same network, optimizer, data and cache settings in bare JAX (`_bare.py`), one
compiled scan per epoch.

Measured: the digits MLP, each start in a process of its own (`_first_epoch.py`), contestants taking
turns. `compile` is tracing and all that the library does before its first epoch; a start is init,
compile and first epoch. A warm start finds what the previous one compiled; a cold one has no cache.
A resumed one is warm, restores a checkpoint before it compiles, and saves one after.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import _measuring

SCRIPT = Path(__file__).parent / "_first_epoch.py"
PARTS = ("import", "data", "init", "compile", "first epoch")
START = "init + compile + first epoch"


def start(contestant, cache, parts):
    """Run one start and keep its parts; give the seconds of init, compile and first epoch."""
    command = [sys.executable, str(SCRIPT), contestant, *([cache] if cache else [])]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    taken = json.loads(run.stdout.splitlines()[-1])
    parts.append(taken)
    return taken["init"] + taken["compile"] + taken["first epoch"]


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, kinds = (1, ["warm"]) if options.quick else (5, ["cold", "warm"])
    parts, contestants = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for contestant in ("library", "resumed", "bare"):
            for kind in kinds if contestant != "resumed" else ["warm"]:
                entrant = f"{contestant}, {kind}"
                cache = f"{directory}/{contestant}" if kind == "warm" else None
                parts[entrant] = []
                contestants[entrant] = functools.partial(start, contestant, cache, parts[entrant])
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
    warm = measured["library, warm"][START]["median"]
    _measuring.finish(
        options,
        "start_up",
        unit="seconds",
        warm_up="one start of each, which fills the caches",
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[_measuring.bar(f"library, warm: {START}, seconds", warm, most=0.8)],
    )


if __name__ == "__main__":
    main()
