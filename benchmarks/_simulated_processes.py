"""Processes that are not there: what each of many writes of a state, and its part of a checkpoint.

Every array is split over all processes along its first dimension, as `fsdp()` splits it.
"""

import contextlib
import os
from unittest import mock

import jax
import numpy as np

from trainer.checkpoints import parts
from trainer.checkpoints.arrays.leaves import Leaf, Piece, align
from trainer.checkpoints.arrays.sharing import EarlierPieces

ROWS, COLUMNS, ITEMSIZE = 2, 32, 4
"""Of each piece."""

EPOCH = 1
HEAD = {"scores": {"val/loss": 0.5}, "config": {"seed": 0}}


@contextlib.contextmanager
def as_process(number):
    """Be a process of a run that has many."""
    with mock.patch.object(jax, "process_index", return_value=number):
        yield


def list_leaves(processes, arrays, process):
    """List the arrays of a state, each with the piece that one process has."""
    size = align(ROWS * COLUMNS * ITEMSIZE)
    box = ((process * ROWS, (process + 1) * ROWS), (0, COLUMNS))
    return [
        Leaf(
            f"params/block_{n // 6}/attention/{'qkvoud'[n % 6]}/kernel",
            "float32",
            (processes * ROWS, COLUMNS),
            ITEMSIZE,
            (Piece(n * size, box),),
        )
        for n in range(arrays)
    ]


def snapshot(processes, arrays, process):
    """Build what a process writes."""
    leaves = list_leaves(processes, arrays, process)
    size = arrays * align(ROWS * COLUMNS * ITEMSIZE)
    buffer = np.full(size, process % 251, np.uint8)
    return parts.Snapshot(EPOCH, {"": leaves}, buffer)


def write_parts(stage, processes, arrays):
    """Write the parts of all processes but the main one, one after another."""
    for process in range(1, processes):
        with as_process(process):
            parts.write_part(
                stage, snapshot(processes, arrays, process), lambda: False, EarlierPieces()
            )


def link_parts(template, stage):
    """Lay the parts of all other processes in a folder, without copying them."""
    (stage / "arrays").mkdir(parents=True)
    for file in template.rglob("*_*"):
        os.link(file, stage / file.relative_to(template))
