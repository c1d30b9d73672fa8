"""Warnings on resume: the settings in which the script differs from the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.checks.pytrees import format_path
from trainer.hook import RunSettings
from trainer.loop.closure_settings import hash_array
from trainer.loop.run_description import HYPERPARAMS, KEY
from trainer.state import TrainState

_MOST = 30
"""The most differences that are listed."""

_READ_OFF = ("runs", "step", "run", "gate")
"""Settings that other versions of a library may spell differently, like `a.b` and `a[0]`."""


class Difference(NamedTuple):
    """A setting that changed since the checkpoint was saved."""

    subject: str
    name: str
    saved: str
    """Its value there; `nothing` if it had none."""
    now: str
    leaf: str = ""
    """Path of the leaf of the state that starts as this array, if there is one."""

    @property
    def kept(self) -> bool:
        """Whether the checkpoint's value is in force, not the script's."""
        return self.subject in (KEY, HYPERPARAMS) or bool(self.leaf)

    @property
    def what(self) -> str:
        """The setting, for messages."""
        if self.subject == HYPERPARAMS:
            return self.name
        return f"{self.subject}, {self.name}" if self.name else f"the {self.subject}"

    def __str__(self) -> str:
        line = f"{self.what}: saved {self.saved}, now {self.now}"
        if self.subject == KEY or self.leaf:
            return f"{line}; the saved one is in force: another directory starts with the new one"
        if self.subject == HYPERPARAMS:
            setting = f"{self.name.rpartition('/')[2]}={self.now}"
            return f"{line}; the saved one is in force: hooks.set_hyperparams({setting}) sets it"
        return f"{line}; the new one is in force"


def compare_settings(
    saved: RunSettings, now: RunSettings, in_force: Mapping[str, str], *, same_software: bool
) -> list[Difference]:
    """List the settings that differ between a checkpoint and the script that resumes from it.

    Phases and hooks that only one of them has are left out. So is a hyperparameter that already has
    the script's value, since a hook set it, or that a hook sets.

    Args:
        saved: settings recorded in the checkpoint.
        now: settings of the script.
        in_force: the restored hyperparameters.
        same_software: whether the libraries are those that saved it; others may name settings
            differently, and then only those that do not depend on it are compared.

    >>> saved, now = ({"phase train": {"data size": size}} for size in ("10", "20"))
    >>> [str(found) for found in compare_settings(saved, now, {}, same_software=True)]
    ['phase train, data size: saved 10, now 20; the new one is in force']
    """
    found = []
    for subject in saved.keys() & now.keys():
        before, after = saved[subject], now[subject]
        for name in {**before, **after}:
            old, new = before.get(name, "nothing"), after.get(name, "nothing")
            firm = not ("." in name or "[" in name or name in _READ_OFF)
            set_already = subject == HYPERPARAMS and _is_in_force(name, new, in_force, now)
            if old != new and (same_software or firm) and not set_already:
                found.append(Difference(subject, name, old, new))
    found.sort(key=lambda difference: [*now].index(difference.subject))
    return [one for place, one in enumerate(found) if not _is_part(one, found[:place])]


def mark_starting_arrays(
    differences: Sequence[Difference], start: TrainState, restored: TrainState
) -> list[Difference]:
    """Mark the differences in arrays with which the state starts, and set `leaf` to their paths.

    Such are parameters that `models.pretrained` was given, and the base of adapters. A resumed run
    has those of the checkpoint.

    Args:
        differences: between a checkpoint and the script.
        start: the state that the script made.
        restored: the state of the checkpoint.

    Raises:
        ValueError: such a leaf has not changed since the run began. So it is frozen, and the run
            would continue with it instead of the one that the script was given.
    """
    arrays = _index_arrays(differences, start, restored)
    marked, frozen = [], []
    for one in differences:
        alike = [(_count_common_names(one.name, path), path) for path in arrays.get(one.now, ())]
        common, path = max(alike, default=(0, ""))
        if common:
            one = one._replace(leaf=path)
            if hash_array(arrays[one.now][path]) == one.saved:
                frozen.append(f"{path}: saved {one.saved}, now {one.now}")
        marked.append(one)
    if frozen:
        raise ValueError(
            "the run was saved with other frozen arrays, and would continue with them instead of "
            f"those that it is given:\n  {_join_lines(frozen)}\ngive it those that it was saved "
            "with, or train in another directory"
        )
    return marked


def _index_arrays(
    differences: Sequence[Difference], start: TrainState, restored: TrainState
) -> dict[str, dict[str, Any]]:
    """Index restored arrays by what they are at the start, and by their path.

    Only those are hashed that have the shape and dtype of a difference.
    """
    shapes = {one.now.rpartition(" ")[0] for one in differences}
    found: dict[str, dict[str, Any]] = {}
    for field in ("params", "model_state", "carry"):
        trees = getattr(start, field), getattr(restored, field)
        leaves, others = map(jax.tree_util.tree_leaves_with_path, trees)
        for (place, first), (_, now) in zip(leaves, others, strict=True):
            if f"{getattr(first, 'dtype', None)}{list(np.shape(first))}" in shapes:
                path = f"{field}/{format_path(place)}"
                found.setdefault(hash_array(first), {})[path] = now
    return found


def _count_common_names(setting: str, path: str) -> int:
    """Return how many names of a setting `a.b[c]` are in a path `a/b/c`."""
    names = setting.translate(str.maketrans("[", ".", "]")).split(".")
    return len({*names} & {*path.split("/")})


def _is_in_force(name: str, new: str, in_force: Mapping[str, str], hooks: Collection[str]) -> bool:
    """Return whether a hyperparameter has the script's value, or a hook sets it anyway."""
    short = name.rpartition("/")[2]
    return in_force.get(name) == new or any(
        hook.startswith("hook set_hyperparams/") and short in hook for hook in hooks
    )


def _is_part(one: Difference, before: Sequence[Difference]) -> bool:
    """Return whether the difference is listed for the hook that this subject is a part of."""
    return any(
        one[1:] == other[1:] and one.subject.startswith(f"{other.subject}/") for other in before
    )


def format_warning(where: str, differences: list[Difference]) -> str:
    """Format the differences as one warning."""
    lines = _join_lines([str(difference) for difference in differences])
    return f"{where} was saved by a script with other settings:\n  {lines}"


def _join_lines(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return "\n  ".join([*lines[:_MOST], *more])


def merge_saved_settings(now: RunSettings, differences: list[Difference]) -> RunSettings:
    """Return the settings to record in checkpoints from now on: those in force.

    So a changed setting is reported once, and one that is not in force at every resume.
    """
    rows = {subject: dict(settings) for subject, settings in now.items()}
    for difference in differences:
        if difference.kept and difference.saved != "nothing":
            rows[difference.subject][difference.name] = difference.saved
    return rows
