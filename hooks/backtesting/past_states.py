"""Past states: what is known of a run's state at an epoch, and what stands for the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from hooks.backtesting.not_recorded import MissingArray, MissingTree, NotRecorded
from hooks.backtesting.past_runs import PastEpoch, PastRun
from trainer import TrainState, restore
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checks.pytrees import format_path
from trainer.state import PyTree, strip_host_fields
from trainer.supervised.hyperparams import hyperparam, hyperparam_names
from trainer.supervised.optimizers import FrozenState

OF_HOOKS = ("rng", "carry/lessons")
"""Leaves that training leaves as they are; those in the optimizer's state are found by their kind.
"""


class PastStates:
    """Gives the states of a run on record, as far as they are known.

    Step, epoch and memory are known at every epoch; where a template is given, also what hooks
    alone set: the optimizer's numbers, what is frozen, the weights of lessons. All else is known at
    the start, and at epochs whose commit is still there. What stands for the rest tells, where it
    is looked at, which hook is under way, and where there are commits.

    Args:
        past: the run.
        template: the state that it began with.

    Raises:
        ValueError: the template is of a later epoch.
    """

    def __init__(self, past: PastRun, template: TrainState | None) -> None:
        self._past, self._template = past, template
        self._commits = {commit.epoch for commit in past.commits}
        self._misfits: dict[int, str] = {}
        self._unread: dict[int, str] = {}
        self._hook: str | None = None
        self._where = "start"
        self.output = MissingArray("what a phase handed on", self._refuse)
        if template is None:
            self._blank, self._known = self._without_template(), list[int]()
            self._names: list[str] = []
        elif int(template.epoch):
            raise ValueError(
                "a run is replayed from the state that it began with, such as task.init(key, "
                f"example); got one of epoch {int(template.epoch)}"
            )
        else:
            self._names = hyperparam_names(template.opt_state)
            self._blank, self._known = self._blanked(template)
        before = next(epoch.epoch for epoch in past.epochs if epoch.epoch) - 1
        start = self._blank if template is None or before else template
        self.first = self._at(PastEpoch(before, 0, {}), start)

    def after_epoch(self, past: PastEpoch, before: TrainState) -> TrainState:
        """Give the state after an epoch, with what hooks set and remember.

        Args:
            past: the epoch.
            before: the state after the hooks of the last one.
        """
        self._where = f"epoch {past.epoch}"
        device = self._restored(past.epoch) or self._blank
        return self._at(past, self._with_known(device, before), before)

    def after_phase(self, phase: str, past: PastEpoch, before: TrainState) -> TrainState:
        """Give the state after a phase of an epoch, of which there is no commit."""
        self._where = f"{phase!r} of epoch {past.epoch}"
        past = past._replace(epoch=past.epoch - 1)
        return self._at(past, self._with_known(self._blank, before), before)

    def hyperparams(self, state: TrainState) -> dict[str, float]:
        """Read the numbers that hooks set in the optimizer; of several members the largest."""
        found = {name: hyperparam(state.opt_state, name) for name in self._names}
        return {
            name if len(leaves) == 1 else f"{name}/{group}": float(np.max(np.asarray(leaf)))
            for name, leaves in found.items()
            for group, leaf in leaves.items()
        }

    @contextlib.contextmanager
    def track_hook(self, hook: str) -> Iterator[None]:
        """Note which hook is under way."""
        self._hook = hook
        try:
            yield
        finally:
            self._hook = None

    def _without_template(self) -> TrainState:
        def tree(field: str) -> PyTree:
            return MissingTree(field, self._refuse, lambda: self._hook is not None)

        device = ("params", "opt_state", "model_state")
        rng: PyTree = MissingArray("rng", self._refuse)
        count: Any = np.int32(0)
        fields: tuple[PyTree, ...] = *map(tree, device), rng, tree("carry")
        return TrainState(count, count, *fields)

    def _blanked(self, template: TrainState) -> tuple[TrainState, list[int]]:
        """Take out what training changes; give the places of the leaves that stay, too."""
        optimizer = template.opt_state
        of_hooks = {
            id(leaf) for name in self._names for leaf in hyperparam(optimizer, name).values()
        }
        nodes = jax.tree.leaves(optimizer, is_leaf=lambda node: isinstance(node, FrozenState))
        of_hooks |= {id(node.live) for node in nodes if isinstance(node, FrozenState)}
        pairs, structure = jax.tree_util.tree_flatten_with_path(strip_host_fields(template))
        leaves, known = [], []
        for place, (path, leaf) in enumerate(pairs):
            name = format_path(path)
            if id(leaf) in of_hooks or name in OF_HOOKS:
                known.append(place)
                leaves.append(leaf)
            else:
                leaves.append(MissingArray(name, self._refuse, like=leaf))
        return jax.tree.unflatten(structure, leaves), known

    def _with_known(self, state: TrainState, before: TrainState) -> TrainState:
        """Put what hooks set, and training leaves as it is, into a state."""
        if not self._known:
            return state
        leaves, structure = jax.tree.flatten(strip_host_fields(state))
        others = jax.tree.leaves(strip_host_fields(before))
        for place in self._known:
            leaves[place] = others[place]
        return jax.tree.unflatten(structure, leaves)

    def _at(
        self, past: PastEpoch, device: TrainState, before: TrainState | None = None
    ) -> TrainState:
        """Count as that epoch has it, and remember what the hooks of the last one do."""
        counts: tuple[Any, ...] = np.int32(past.step), np.int32(past.epoch)
        if self._template is not None:  # phases want arrays of jax, which take 30 us each to make
            steps = np.full(self._template.step.shape, past.step, np.int32)
            counts = jnp.asarray(steps), jnp.asarray(counts[1])
        host: tuple[Any, ...] = (
            (False, {}, {}) if before is None else (before.stop, {}, before.hook_state)
        )
        fields = (device.params, device.opt_state, device.model_state, device.rng, device.carry)
        return TrainState(*counts, *fields, *host)  # type: ignore[call-arg]

    def _restored(self, epoch: int) -> TrainState | None:
        """Restore the commit of an epoch, where there is one that fits."""
        if self._template is None or epoch not in self._commits:
            return None
        target = self._template.replace(hook_state={}, scores={})
        try:
            return restore(self._past.row.directory, target, epoch=epoch)
        except ValueError as error:  # and matters if a hook looks at it
            lines = str(error).split("\n")  # the first and the last are for those who train
            self._misfits[epoch] = "\n".join(lines[1:-1] or lines)
        except (DamagedCheckpoint, OSError) as error:
            self._unread[epoch] = str(error)
        return None

    def _refuse(self, what: str) -> NoReturn:
        hook = "a hook" if self._hook is None else f"hook {self._hook!r}"
        if self._commits and not self._misfits:
            self._restored(max(self._commits))  # a state that fits none is what is wrong
        if self._misfits:
            epoch, listed = next(iter(self._misfits.items()))
            raise NotRecorded(
                f"{hook} looks at {what} at {self._where}, and the state that was given does not "
                f"fit commit {epoch} of run {self._past.row.name!r}:\n{listed}\n"
                "give the one that the run began with, of its network, optimizer and settings"
            )
        epochs = ", ".join(map(str, sorted(self._commits))) or "none"
        lines = [
            f"{hook} looks at {what} at {self._where}, and records hold metrics alone: of run "
            f"{self._past.row.name!r} there are commits of epochs {epochs}"
        ]
        if self._template is None:
            lines.append(
                "give replay the state that the run began with, state=task.init(key, example), and "
                "hooks see what commits hold, and the optimizer's numbers"
            )
        lines += [f"epoch {epoch}: {reason}" for epoch, reason in self._unread.items()]
        raise NotRecorded("\n  ".join(lines))
