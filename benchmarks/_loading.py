"""One directory of weights read by a new process, for `loading.py`: bytes and seconds it took."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import models


def main(how, directory):
    jnp.zeros(1).block_until_ready()  # starts the device
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = resident("VmRSS"), time.perf_counter()
    params = HOW[how](Path(directory))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps({"peak": resident("VmHWM") - before, "held": held, "seconds": seconds}))


def resident(name):
    """Return bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def library(directory):
    return models.from_huggingface(directory)[1]


def library_bfloat16(directory):
    return models.from_huggingface(directory, dtype=jnp.bfloat16)[1]


def safetensors(directory):
    """Read all by the safetensors library, transpose, and move to the device."""
    from safetensors.numpy import load_file

    arrays = load_file(directory / "model.safetensors")
    return {name: jnp.array(array.T) for name, array in arrays.items()}


HOW = {"library": library, "library, bfloat16": library_bfloat16, "safetensors": safetensors}

if __name__ == "__main__":
    main(*sys.argv[1:])
