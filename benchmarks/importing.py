"""How much CPU time does importing the library take?

Baseline: importing jax, flax and optax, which it needs.

Measured: CPU seconds of each import, in new processes whose imports were compiled to bytecode by an
earlier one, as pip does. The bars are for the least of the repeats, which other processes disturb
least; the disk's cache is warm.
"""

import json
import os
import subprocess
import sys

import _measuring

PARTS = ("jax", "flax and optax", "trainer", "hooks", "models")
OURS = PARTS[2:]
SCRIPT = """
import json, sys, time
taken = {}
def measure(part, *modules):
    began, before = time.process_time(), len(sys.modules)
    for module in modules:
        __import__(module)
    taken[part] = time.process_time() - began
    taken[f"modules of {part}"] = len(sys.modules) - before
measure("jax", "jax", "jax.numpy")
measure("flax and optax", "flax.nnx", "optax")
for package in ("trainer", "hooks", "models"):
    measure(package, package)
print(json.dumps(taken))
"""
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def start(starts):
    """Import all in a new process and keep what each part took; give the seconds of ours."""
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    starts.append(json.loads(run.stdout))
    return sum(starts[-1][part] for part in OURS)


def main():
    options = _measuring.arguments(__doc__).parse_args()
    repeats = 1 if options.quick else 15
    starts = []
    ours = _measuring.interleaved({"ours": lambda: start(starts)}, rounds=repeats, warm_up=1)[
        "ours"
    ]
    counted = starts[1:]
    measured = {part: _measuring.spread([taken[part] for taken in counted]) for part in PARTS}
    measured["trainer, hooks, models"] = _measuring.spread(ours)
    rows = [
        (part, _measuring.text(figures["min"]), *_measuring.columns(figures))
        for part, figures in measured.items()
    ]
    _measuring.show("CPU seconds of an import", ("", "least", "median", "quartiles"), rows)
    beyond_jax = min(sum(taken[part] for part in PARTS if part != "jax") for taken in counted)
    _measuring.finish(
        options,
        "importing",
        unit="CPU seconds",
        warm_up="one process, which writes the bytecode",
        repeats=repeats,
        measured=measured,
        ratios={},
        modules={part: counted[0][f"modules of {part}"] for part in PARTS},
        bars=[
            _measuring.bar("beyond jax, flax, optax: CPU seconds", min(ours), most=0.3),
            _measuring.bar("beyond jax: CPU seconds", beyond_jax, most=1),
        ],
    )


if __name__ == "__main__":
    main()
