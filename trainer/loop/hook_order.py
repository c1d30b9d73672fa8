"""The order in which hooks run at each event."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.checks.suggestions import suggest_and_list
from trainer.hook import STAGES, Hook


def order_hooks(hooks: Sequence[Hook], events: Sequence[str]) -> dict[str, tuple[Hook, ...]]:
    """Return the hooks of each event in the order of execution.

    Args:
        hooks: as listed in the chain.
        events: of the program, in order.

    Raises:
        ValueError: a hook has an unknown event or stage, or two keep a hook state of one name.
    """
    names: set[str] = set()
    for hook in hooks:
        if hook.at not in events:
            raise ValueError(
                f"hook {hook.name!r} runs at {hook.at!r}, which is no event of this program"
                f"{suggest_and_list(hook.at, events)}"
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
    return {event: sort_hooks(hooks, event) for event in events}


def sort_hooks(hooks: Sequence[Hook], event: str) -> tuple[Hook, ...]:
    """Return the hooks of an event in the order of execution: by stage, then as listed.

    At `end` saves come first: what hooks change there is returned and not saved.
    """
    stages = ("save", "control", "observe") if event == "end" else STAGES
    here = [hook for hook in hooks if hook.at == event]
    return tuple(sorted(here, key=lambda hook: stages.index(hook.stage)))
