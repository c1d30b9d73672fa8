"""How much memory does reading a directory of weights take beyond the parameters, and how long?

Baseline: the file read whole by the safetensors library, each tensor transposed and moved to the
device, as one would by hand.

Measured: a Llama of 1 GB in float32, a quarter of it embeddings, written to a temporary directory;
each reading in a process of its own (`_loading.py`), contestants taking turns. The figure is the
process's peak of resident memory since before it read, less the bytes of the parameters, over the
bytes of the file. The file is in the page cache, so that seconds say what the processor does.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import _measuring
import jax
import jax.numpy as jnp

import models

SCRIPT = Path(__file__).parent / "_loading.py"
CONTESTANTS = ("library", "library, bfloat16", "safetensors")
SIZES = {"vocabulary": 65_536, "width": 1024, "hidden": 4096, "layers": 11, "heads": 16}
QUICK = {"vocabulary": 512, "width": 64, "hidden": 128, "layers": 2, "heads": 4}


def write(directory, sizes):
    """Write a Llama with drawn weights; return the bytes of its file."""
    architecture = models.Architecture(gated=True, activation="silu", embedding_scale=1.0)
    network = models.transformer(**sizes, context=2048, architecture=architecture)
    params, _ = network.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    models.to_huggingface(network, params, directory)
    return (directory / "model.safetensors").stat().st_size


def read(how, directory, size, taken):
    """Read in a new process; return the peak beyond the parameters over the size of the file."""
    command = [sys.executable, str(SCRIPT), how, str(directory)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(run.stdout.splitlines()[-1])
    taken[how].append(figures["seconds"])
    return (figures["peak"] - figures["held"]) / size


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds = 1 if options.quick else 5
    taken = {how: [] for how in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "model")
        size = write(directory, QUICK if options.quick else SIZES)
        contestants = {
            how: functools.partial(read, how, directory, size, taken) for how in CONTESTANTS
        }
        samples = _measuring.interleaved(contestants, rounds=rounds)
    beyond = {how: _measuring.spread(figures) for how, figures in samples.items()}
    seconds = {how: _measuring.spread(figures[1:]) for how, figures in taken.items()}
    rows = [
        (how, *_measuring.columns(beyond[how]), *_measuring.columns(seconds[how]))
        for how in CONTESTANTS
    ]
    columns = ("", "beyond", "quartiles", "seconds", "quartiles")
    _measuring.show(f"Peak beyond the parameters, of {size / 1e9:.2f} GB", columns, rows)
    _measuring.finish(
        options,
        "loading",
        unit="share of the file's bytes; seconds",
        warm_up="one reading of each, which fills the page cache",
        repeats=rounds,
        measured={"peak beyond the parameters": beyond, "seconds": seconds, "bytes": size},
        ratios={
            f"seconds, {how} / safetensors": _measuring.ratio(taken[how][1:], taken[other][1:])
            for other in ("safetensors",)
            for how in CONTESTANTS[:2]
        },
        bars=[
            _measuring.bar(f"{how}: peak beyond the parameters", beyond[how]["median"], most=0.2)
            for how in CONTESTANTS[:2]
        ],
    )


if __name__ == "__main__":
    main()
