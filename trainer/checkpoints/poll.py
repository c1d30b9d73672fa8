"""Following a run: its newest commit, as often as there is another one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping

from trainer.checkpoints import publishing
from trainer.checkpoints.load import CheckpointPart, read_part_at
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.select import Stamp, get_checkpoint_folder, read_stamp
from trainer.state import PyTree

log = logging.getLogger("entracte")

Newer = Callable[[Mapping[str, PyTree], Collection[str], int], CheckpointPart | None]
"""`(wanted, optional, epoch of the commit in use or -1) -> what is new, if anything is`."""


def make_poller(directory: str | os.PathLike[str]) -> Newer:
    """Make a function that reads a run's newest intact commit if that is not the one in use.

    It gives None, after a mere listing, where nothing else is there: no commit yet, no newer one,
    or the one in use is just being replaced. Where that one is gone, it may be of an earlier epoch:
    the run went back. A damaged commit is told of once, and looked at again when it is replaced.

    Args:
        directory: of the run, which need not be there yet; nothing in it is changed.

    Returns:
        The function. `wanted` and `optional` are those of `read_part`, and it raises the same
        ValueError.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints, TrainState
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> wanted = {"params/w": jnp.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     read = make_poller(run)
    ...     print(read(wanted, (), -1))
    ...     checkpoints.save(state)
    ...     checkpoints.wait()
    ...     print(read(wanted, (), -1).epoch, read(wanted, (), 0))
    None
    0 None
    """
    folder, storage = get_checkpoint_folder(directory), publishing.ArrayStorage()
    damaged: dict[int, Stamp] = {}
    used: dict[int, Stamp] = {}

    def candidates(in_use: int) -> list[int]:
        found: list[int] = []
        numbers = publishing.list_epochs(folder)
        if in_use not in numbers and os.path.lexists(folder / f"{in_use}.replaced"):
            return found
        for number in reversed(numbers):
            now = read_stamp(folder, number)
            unchanged = number == in_use and used.get(number, now) == now
            if now is not None and not unchanged and damaged.get(number) != now:
                found.append(number)
            if number == in_use:
                break
        return found

    def read(
        wanted: Mapping[str, PyTree], optional: Collection[str], in_use: int
    ) -> CheckpointPart | None:
        found = candidates(in_use)
        while found:
            number = found.pop(0)
            before = read_stamp(folder, number)
            try:
                part = read_part_at(folder, number, storage, wanted, optional)
            except DamagedCheckpoint as damage:
                if before is None or read_stamp(folder, number) != before:
                    found = candidates(in_use)  # the run removed or replaced it meanwhile
                    continue
                damaged[number] = before
                log.warning(f"skipped a damaged commit: {damage}")
            else:
                used.clear()
                if before is not None:
                    used[number] = before
                return part
        return None

    return read
