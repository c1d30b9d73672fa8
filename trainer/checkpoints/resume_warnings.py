"""Warnings on resume: the settings in which the script differs from the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from trainer.hook import RunSettings
from trainer.loop.run_description import HYPERPARAMS, KEY

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

    @property
    def kept(self) -> bool:
        """Whether the checkpoint's value is in force, not the script's."""
        return self.subject in (KEY, HYPERPARAMS)

    @property
    def what(self) -> str:
        """The setting, for messages."""
        if self.subject == HYPERPARAMS:
            return self.name
        return f"{self.subject}, {self.name}" if self.name else f"the {self.subject}"

    def __str__(self) -> str:
        line = f"{self.what}: saved {self.saved}, now {self.now}"
        if self.subject == KEY:
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
    lines = [str(difference) for difference in differences[:_MOST]]
    if len(differences) > _MOST:
        lines.append(f"and {len(differences) - _MOST} more")
    return f"{where} was saved by a script with other settings:\n  " + "\n  ".join(lines)


def merge_saved_settings(now: RunSettings, differences: list[Difference]) -> RunSettings:
    """Return the settings to record in checkpoints from now on: those in force.

    So a changed setting is reported once, and one that is not in force at every resume.
    """
    rows = {subject: dict(settings) for subject, settings in now.items()}
    for difference in differences:
        if difference.kept and difference.saved != "nothing":
            rows[difference.subject][difference.name] = difference.saved
    return rows
