"""Suites: named sets of phases and hooks that evaluate a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.hook import flatten_hooks
from trainer.host.exception_notes import annotate_errors
from trainer.phases.factories import check_evaluation_phases
from trainer.phases.phase import Phase
from trainer.runs.text import check_name
from trainer.state import PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """Named evaluation phases, and the state that checkpoints are restored into.

    A suite reads `params`, `model_state`, `step`, `epoch` and `rng` of a checkpoint, and the parts
    of `carry` that are named here. So it measures exactly the scores that the same phases measure
    in training.

    Args:
        name: by which evaluations are requested, such as `digits`.
        template: a state with the structure and types, `task.init(key, example)`, or a function
            that returns it.
        phases: from `trainer.evaluation` or `trainer.rl.evaluation_of`; their names are the
            prefixes of the scores.
        carry: names in `state.carry`, or paths, on which scores depend. Checkpoint and template
            must both have such a part, or neither. The default has a policy's statistics; add
            `lessons` if the evaluation draws lessons as training does.
        hooks: returns observers for a run, `lambda folder: hooks.record_replays(..., folder)`. They
            run after the phases, on the restored state and the scores; what they score is added to
            the result, what they write in the folder, `<run>/evaluations/<name>`, to the run's
            artifacts.

    Raises:
        TypeError: something is not a phase.
        ValueError: a phase changes the state, two have one name, or the name is not valid.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from trainer import data, evaluation
    >>> source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
    >>> phase = evaluation(lambda state, batch: {"error": batch["inputs"] - state.params}, source)
    >>> template = TrainState.create(params=jnp.float32(0), rng=jax.random.key(0))
    >>> Suite("errors", template, phase)
    Suite('errors', val)
    """

    name: str
    template: TrainState | Callable[[], TrainState]
    phases: Phase | Sequence[Phase]
    carry: Sequence[str] = ("normalization/observations",)
    hooks: Callable[[Path], Any] | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "a suite")
        object.__setattr__(self, "phases", check_evaluation_phases(self.phases))
        if isinstance(self.carry, str):
            raise ValueError(f"carry must be a sequence of names, such as ({self.carry!r},)")

    def __repr__(self) -> str:
        return f"Suite({self.name!r}, {', '.join(phase.name for phase in self.program)})"

    @property
    def program(self) -> tuple[Phase, ...]:
        """The phases, in order."""
        return check_evaluation_phases(self.phases)

    @functools.cached_property
    def state(self) -> TrainState:
        """The template, created once, without the optimizer's state, which no evaluation needs.

        Raises:
            TypeError: it is not a state.
        """
        made = self.template() if callable(self.template) else self.template
        if not isinstance(made, TrainState):
            raise TypeError(
                f"suite {self.name!r} needs a TrainState as template, or a function that makes "
                f"one; got {made!r:.100}"
            )
        return made.replace(opt_state=(), stop=False, scores={}, hook_state={})

    def check(self) -> None:
        """Check, before any request is claimed, that the phases accept the template.

        Raises:
            Exception: what the phases raise, with a note.
        """
        with annotate_errors(f"in suite {self.name!r}, on its own template"):
            for phase in self.program:
                phase.verify(self.state)
                phase.infer_shapes(self.state)

    def required_trees(self) -> dict[str, PyTree]:
        """Return the parts of a checkpoint that are read: path to the tree that it must fit."""
        fields = ("params", "model_state", "step", "epoch", "rng")
        wanted = {name: getattr(self.state, name) for name in fields}
        return wanted | {f"carry/{path}": _get(self.state.carry, path) for path in self.carry}

    def fill_template(self, trees: Mapping[str, PyTree]) -> TrainState:
        """Return the template with what was read filled in."""
        parts = dict(trees)
        carry = self.state.carry
        for path in self.carry:
            tree = parts.pop(f"carry/{path}")
            if not (isinstance(tree, dict) and not tree):
                carry = _put(carry, path.split("/"), tree)
        return self.state.replace(carry=carry, **parts)

    def make_hooks(self, folder: Path) -> tuple[Any, ...]:
        """Create the hooks for a run; the folder, for their files, is created if there are any.

        Raises:
            ValueError: one of them saves checkpoints.
        """
        if self.hooks is None:
            return ()
        folder.mkdir(parents=True, exist_ok=True)
        found = flatten_hooks(self.hooks(folder))
        if saving := [hook.name for hook in found if hook.stage == "save"]:
            raise ValueError(
                f"suite {self.name!r} takes hooks that look at what was restored, and "
                f"{', '.join(saving)} would save it: leave it out"
            )
        return found


def _get(tree: PyTree, path: str) -> PyTree:
    """Return what is at a path of dicts; {} if nothing is."""
    for name in path.split("/"):
        tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
    return tree


def _put(tree: PyTree, path: Sequence[str], part: PyTree) -> PyTree:
    return {**tree, path[0]: _put(tree[path[0]], path[1:], part)} if path else part
