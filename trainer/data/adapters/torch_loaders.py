"""Loaders of PyTorch, seeded for each pass."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from trainer.checks.arguments import describe_value
from trainer.data.adapters.batch_structure import name_arrays
from trainer.data.adapters.torch_states import from_json, to_json
from trainer.data.batches import Batch
from trainer.data.streams import Stream

log = logging.getLogger("entracte")

WHO = "data.from_torch"


def from_torch(loader: Any, *, superbatch: int = 16, steps_per_epoch: int | None = None) -> Stream:
    """Build a stream from a `torch.utils.data.DataLoader`.

        loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
        source = data.from_torch(loader)

    Its order follows from the run's seed and the epoch: its generator, those of its samplers, and
    the global ones of PyTorch, NumPy and Python are seeded while it is read, and the global ones
    put back. A sampler with `set_epoch` gets the epoch.

    With `steps_per_epoch` passes take the place of epochs. A `StatefulDataLoader` of torchdata
    keeps its `state_dict` in the state, so a resumed run continues with the next batch. Another
    loader is read and discarded up to the position, to the same batches; a notice says so. Where
    random transforms in worker processes cannot be repeated, a notice says that, too.

        loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
        source = data.from_torch(loader)

    Args:
        loader: a `DataLoader` whose batches are dicts of tensors, pairs (inputs, labels), or
            tensors of inputs. Networks here take pictures as `[batch, height, width, channels]`.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: it is no such loader; when it is read, its batches are something else.
    """
    if not all(hasattr(loader, name) for name in ("dataset", "sampler", "num_workers")):
        raise TypeError(
            f"{WHO} takes a torch.utils.data.DataLoader; got {describe_value(loader)}: "
            "torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)"
        )
    stateful = hasattr(loader, "load_state_dict")
    if steps_per_epoch is not None and not stateful:
        log.info(
            "a DataLoader cannot return to a place: a run that resumes within a pass reads it from "
            "the beginning of the pass, to the same batches; "
            "torchdata.stateful_dataloader.StatefulDataLoader continues at once"
        )
    if getattr(loader, "persistent_workers", False):
        log.info(
            "workers of a DataLoader with persistent_workers=True keep random states that a "
            "resumed run does not have: random transforms in them differ then"
        )
    elif stateful and steps_per_epoch is not None and loader.num_workers:
        log.info(
            "workers of a StatefulDataLoader begin with new random states when a run resumes "
            "within a pass: random transforms in them differ then"
        )
    return Stream(
        lambda seed, number: _LoaderPass(loader, seed, number),
        superbatch,
        steps_per_epoch=steps_per_epoch,
    )


class _LoaderPass:
    """One pass over the batches of a loader, for a seed and a number."""

    def __init__(self, loader: Any, seed: int, number: int) -> None:
        self._loader, self._seed, self._number = loader, seed, number

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        if hasattr(self._loader, "load_state_dict"):
            return _StatefulBatches(self._loader, self._seed, self._number)
        return _Batches(self._loader, self._seed, self._number)


class _Batches:
    """The batches of a pass; each is read under random states of its own."""

    def __init__(self, loader: Any, seed: int, number: int) -> None:
        self._loader, self._seeds = loader, (seed, number)
        self._rest: Any = None
        self._read = 0

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Batch:
        if self._rest is None:
            self._open()
        with _seeded((*self._seeds, 1 + self._read)):
            element = next(self._rest)
        self._read += 1
        remedy = "return a dict of tensors from the dataset, or from collate_fn"
        return name_arrays(element, WHO, remedy)

    def _open(self) -> None:
        _seed_samplers(self._loader, self._seeds)
        with _seeded((*self._seeds, 0)):
            self._rest = iter(self._loader)


class _StatefulBatches(_Batches):
    """The batches of a pass of a loader that knows its place."""

    def get_state(self) -> Any:
        """Return the place, as JSON data."""
        return {"read": self._read, "loader": to_json(self._rest.state_dict())}

    def set_state(self, state: Any) -> None:
        """Begin at a place."""
        self._read = state["read"]
        self._loader.load_state_dict(from_json(state["loader"]))
        self._open()


def _seed_samplers(loader: Any, seeds: tuple[int, int]) -> None:
    """Seed the generators of a loader and its samplers, and tell them the number of the pass."""
    samplers = [
        loader.sampler,
        loader.batch_sampler,
        getattr(loader.batch_sampler, "sampler", None),
    ]
    for part in samplers:
        if hasattr(part, "set_epoch"):
            part.set_epoch(seeds[1])
    number = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    for part in (loader, *samplers):
        if getattr(part, "generator", None) is not None:
            part.generator.manual_seed(number)


@contextlib.contextmanager
def _seeded(seeds: tuple[int, ...]) -> Iterator[None]:
    """Seed the global random states in a `with` block, and put them back after it."""
    import torch

    number = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    ours, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
