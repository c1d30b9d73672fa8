"""Does learning from a reward turn a start that adds wrongly into one that adds rightly?

Each seed runs `examples/arithmetic.py` in a new process: a transformer imitates demonstrations of
sums of one and two digits, most of which forget carries, and then learns from a reward, by group
relative policy optimization. Measured: the share of wrong answers to held-out sums after imitation
and after the reward, with the likeliest tokens, and the seconds of the whole process, compilation
included.

Baseline: the start. The bar is a mean reward, 1 for a right sum, above 0.9 from a start below 0.5,
within 5 minutes, for each of 5 seeds.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import _measuring

EXAMPLE = Path(__file__).parents[1] / "examples" / "arithmetic.py"
SEEDS, QUICK_SEEDS = 5, 2
QUICK = (
    *("--epochs", "2", "--imitation-epochs", "1", "--layers", "1", "--width", "16"),
    *("--prompts", "4", "--group-size", "4"),
)
SILENT = (
    *("--logging.no-console", "--logging.no-report", "--logging.no-tensorboard"),
    *("--logging.store", "off"),
)


class Learned(NamedTuple):
    """What one seed learned."""

    start: float
    """Mean reward on held-out sums after imitation."""
    end: float
    """The same after learning from the reward."""
    seconds: float


def learn(seed: int, flags: tuple[str, ...]) -> Learned:
    """Run the example once."""
    with tempfile.TemporaryDirectory() as folder:
        # A folder of its own for what it compiles, so that it compiles as the first time.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        command = [sys.executable, EXAMPLE, "--run", f"{folder}/run", "--seed", str(seed)]
        began = time.perf_counter()
        run = subprocess.run(
            [*command, *flags, *SILENT], env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
    found = re.search(r"held-out sums: ([\d.]+) right by imitation, ([\d.]+) by", run.stdout)
    if run.returncode or found is None:
        raise RuntimeError(f"seed {seed} failed:\n{run.stdout}{run.stderr}")
    return Learned(float(found[1]), float(found[2]), seconds)


def main() -> None:
    options = _measuring.arguments(__doc__).parse_args()
    seeds = range(QUICK_SEEDS if options.quick else SEEDS)
    learned = [learn(seed, QUICK if options.quick else ()) for seed in seeds]
    _measuring.show(
        "Sums of one and two digits",
        ("seed", "reward at the start", "reward at the end", "seconds"),
        [
            (str(seed), f"{one.start:.3f}", f"{one.end:.3f}", f"{one.seconds:.0f}")
            for seed, one in zip(seeds, learned, strict=True)
        ],
    )
    bar = _measuring.bar
    _measuring.finish(
        options,
        "arithmetic",
        measured={
            "wrong at the start": _measuring.spread([1 - one.start for one in learned]),
            "wrong at the end": _measuring.spread([1 - one.end for one in learned]),
            "seconds": _measuring.spread([one.seconds for one in learned]),
        },
        ratios={},
        bars=[
            bar("highest reward at the start", max(one.start for one in learned), most=0.5),
            bar("lowest reward at the end", min(one.end for one in learned), least=0.9),
            bar("most seconds of a seed", max(one.seconds for one in learned), most=300),
        ],
        unit="share of held-out sums; seconds of a process",
        warm_up="none: each seed is a new process, compilation included",
        repeats=f"{len(learned)} seeds",
    )


if __name__ == "__main__":
    main()
