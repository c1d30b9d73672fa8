"""What a script asks for that a resumed run does not do, or does otherwise than before: said."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from trainer.hook import RunSettings
from trainer.loop.run_description import HYPERPARAMS, KEY

_MOST = 30
"""Differences that are listed."""

_READ_OFF = ("runs", "step", "run", "gate")
"""Names of settings that other versions of a library may spell otherwise, as `a.b` and `a[0]`."""


class Difference(NamedTuple):
    """A setting that is not what it was when the checkpoint was saved."""

    subject: str
    name: str
    saved: str
    """Its value there; `nothing` where it had none."""
    now: str

    @property
    def kept(self) -> bool:
        """Whether the checkpoint's value is in force; else the script's is."""
        return self.subject in (KEY, HYPERPARAMS)

    @property
    def what(self) -> str:
        """Name the setting."""
        if self.subject == HYPERPARAMS:
            return self.name
        return f"{self.subject}, {self.name}" if self.name else f"the {self.subject}"

    def __str__(self) -> str:
        line = f"{self.what}: saved {self.saved}, now {self.now}"
        if self.subject == KEY:
            return f"{line}; the saved one is in force: another directory begins with the new one"
        if self.subject == HYPERPARAMS:
            setting = f"{self.name.rpartition('/')[2]}={self.now}"
            return f"{line}; the saved one is in force: hooks.set_hyperparams({setting}) sets it"
        return f"{line}; the new one is in force"


def compare_settings(
    saved: RunSettings, now: RunSettings, in_force: Mapping[str, str], *, same_software: bool
) -> list[Difference]:
    """List the settings that differ between a checkpoint and the script that goes on from it.

    Phases and hooks that only one of them has are left out. So is a hyperparameter that already has
    the script's value, since a hook set it, or that a hook sets.

    Args:
        saved: what the checkpoint has on record.
        now: what the script says.
        in_force: the hyperparameters that were restored.
        same_software: whether the libraries are those that saved it; others may keep settings under
            other names, so that only those are compared that do not depend on it.

    >>> saved, now = ({"phase train": {"data size": size}} for size in ("10", "20"))
    >>> [str(found) for found in compare_settings(saved, now, {}, same_software=True)]
    ['phase train, data size: saved 10, now 20; the new one is in force']
    """
    found = []
    for subject in saved.keys() & now.keys():
        before, after = saved[subject], now[subject]
        for name in [*before, *(name for name in after if name not in before)]:
            old, new = before.get(name, "nothing"), after.get(name, "nothing")
            firm = not ("." in name or "[" in name or name in _READ_OFF)
            if old == new or not (same_software or firm):
                continue
            if subject == HYPERPARAMS and _is_in_force(name, new, in_force, now):
                continue
            found.append(Difference(subject, name, old, new))
    order = [*now]
    found.sort(key=lambda difference: order.index(difference.subject))
    return [one for place, one in enumerate(found) if not _told(one, found[:place])]


def _is_in_force(name: str, new: str, in_force: Mapping[str, str], hooks: Collection[str]) -> bool:
    """Say whether a hyperparameter is what the script says, or is set by a hook in any case."""
    if in_force.get(name) == new:
        return True
    short = name.rpartition("/")[2]
    return any(hook.startswith("hook set_hyperparams/") and short in hook for hook in hooks)


def _told(one: Difference, before: Sequence[Difference]) -> bool:
    """Say whether it was told of the hook that this one is a part of."""
    return any(
        one[1:] == other[1:] and one.subject.startswith(f"{other.subject}/") for other in before
    )


def warning(where: str, differences: list[Difference]) -> str:
    """Say what differs, in one warning."""
    lines = [str(difference) for difference in differences[:_MOST]]
    if more := len(differences) - _MOST:
        lines += [f"and {more} more"] if more > 0 else []
    return f"{where} was saved by a script that said otherwise:\n  " + "\n  ".join(lines)


def merge_saved_settings(now: RunSettings, differences: list[Difference]) -> RunSettings:
    """Give what checkpoints have on record from now on: what is in force.

    What the script says is said once, where it changed; what it says in vain, at every resume.
    """
    rows = {subject: dict(settings) for subject, settings in now.items()}
    for difference in differences:
        if difference.kept and difference.saved != "nothing":
            rows[difference.subject][difference.name] = difference.saved
    return rows
