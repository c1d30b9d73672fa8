"""The order of hooks at an event, and the checks of the events that they name."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.checks.suggestions import suggest_and_list
from trainer.hook import STAGES, Hook


def sort_hooks(hooks: Sequence[Hook], event: str) -> tuple[Hook, ...]:
    """Return the hooks of an event in the order of execution: by stage, then as listed.

    At `end` saves come first: what hooks change there is returned and not saved.
    """
    stages = ("save", "control", "observe") if event == "end" else STAGES
    here = [hook for hook in hooks if hook.at == event]
    return tuple(sorted(here, key=lambda hook: stages.index(hook.stage)))


def check_hook_events(hooks: Sequence[Hook], events: Sequence[str]) -> None:
    """Check that each hook runs at an event of the program, and keeps hook states of its own.

    Raises:
        ValueError: a hook does not.
    """
    names: set[str] = set()
    for hook in hooks:
        if hook.at not in events:
            raise ValueError(
                f"hook {hook.name!r} runs at {hook.at!r}, which is no event of this program"
                f"{suggest_and_list(hook.at, events)}"
            )
        if hook.gather and hook.at == "error":
            raise ValueError(
                f"hook {hook.name!r} cannot gather at 'error': other processes may have ended"
            )
        if hook.stage not in STAGES:
            raise ValueError(f"hook {hook.name!r} is of stage {hook.stage!r}; one of {STAGES}")
        for name, _ in hook.hook_states:
            if name in names:
                raise ValueError(
                    f"two hooks keep a hook state named {name!r}; a name belongs to one hook: "
                    "give one of them another name or subject"
                )
            names.add(name)
