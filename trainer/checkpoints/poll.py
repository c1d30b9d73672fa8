"""Poll a run: read its newest checkpoint whenever there is another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from trainer.checkpoints import publishing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.publishing import Stamp, read_stamp
from trainer.checkpoints.select import get_checkpoint_folder, iterate_checkpoints, log_skipped
from trainer.checkpoints.storage.bucket_path import BucketPath

Found = TypeVar("Found")


def make_poller(
    directory: str | os.PathLike[str] | BucketPath,
) -> Callable[[Callable[[int], Found], int], Found | None]:
    """Make a function that reads a run's newest intact checkpoint if that is not the one in use.

    It returns None after a mere listing if there is nothing else: no checkpoint yet, no newer one,
    or the one in use is just being replaced. If the one in use is gone, the result may be of an
    earlier epoch: the run went back. A damaged checkpoint is reported once, and read again when it
    is replaced. The run's directory may be absent; nothing in it is changed.

    Returns:
        The function `(read, epoch of the checkpoint in use, or -1) -> what read returned, or None`;
        `read` takes a number, and raises DamagedCheckpoint.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints, TrainState
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     poll = make_poller(run)
    ...     print(poll(lambda number: number, -1))
    ...     checkpoints.save(state)
    ...     checkpoints.wait()
    ...     print(poll(lambda number: number, -1), poll(lambda number: number, 0))
    None
    0 None
    """
    folder = get_checkpoint_folder(directory)
    damaged: dict[int, Stamp | None] = {}
    used: dict[int, Stamp | None] = {}

    def list_newer(in_use: int) -> list[int]:
        found: list[int] = []
        numbers = publishing.list_epochs(folder)
        if in_use not in numbers and publishing.is_being_replaced(folder, in_use):
            return found
        for number in reversed(numbers):
            now = read_stamp(folder, number)
            unchanged = number == in_use and used.get(number, now) == now
            if now is not None and not unchanged and damaged.get(number) != now:
                found.append(number)
            if number == in_use:
                break
        return found

    def poll(read: Callable[[int], Found], in_use: int) -> Found | None:
        for number, stamp, found in iterate_checkpoints(folder, lambda: list_newer(in_use), read):
            if not isinstance(found, DamagedCheckpoint):
                used.clear()
                used[number] = stamp
                return found
            damaged[number] = stamp
            log_skipped(found)
        return None

    return poll
