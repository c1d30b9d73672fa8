"""Rebuild the known parts of a recorded run's states, with placeholders for the rest."""

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
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checks.pytrees import format_path
from trainer.state import PyTree, strip_host_fields
from trainer.supervised.hyperparams import get_hyperparam, hyperparam_names
from trainer.supervised.optimizers import FrozenState

SET_BY_HOOKS = ("rng", "carry/lessons")
"""Leaves that training does not change; those of the optimizer's state are found by their type."""


class PastStates:
    """Rebuilds the states of a recorded run, as far as they are known.

    Step, epoch and hook states are known at every epoch; with a template, the state that the run
    began with, also the values that only hooks set: the optimizer's hyperparameters, what is
    frozen, the weights of lessons. Everything else is known at the start, and at epochs whose
    checkpoint still exists. When a hook uses a placeholder, the error names both.

    Raises:
        ValueError: the template is of a later epoch.
    """

    def __init__(self, past: PastRun, template: TrainState | None) -> None:
        self._past, self._template = past, template
        self._saved_epochs = {checkpoint.epoch for checkpoint in past.checkpoints}
        self._misfits: dict[int, str] = {}
        self._unreadable: dict[int, str] = {}
        self._hook: str | None = None
        self._where = "start"
        self.output = MissingArray("the output of a phase", self._refuse)
        if template is None:
            self._blank, self._known = self._without_template(), list[int]()
            self._names: list[str] = []
        elif int(template.epoch):
            raise ValueError(
                "a backtest needs the state that the run began with, such as task.init(key, "
                f"example); got one of epoch {int(template.epoch)}"
            )
        else:
            self._names = hyperparam_names(template.opt_state)
            self._blank, self._known = self._blanked(template)
        before = next(epoch.epoch for epoch in past.epochs if epoch.epoch) - 1
        start = self._blank if template is None or before else template
        self.first = self._at(PastEpoch(before, 0, {}), start)

    def after_epoch(self, past: PastEpoch, before: TrainState) -> TrainState:
        """Return the state after an epoch, with what hooks set in the state before it."""
        self._where = f"epoch {past.epoch}"
        device = self._restore(past.epoch) or self._blank
        return self._at(past, self._with_known(device, before), before)

    def after_phase(self, phase: str, past: PastEpoch, before: TrainState) -> TrainState:
        """Return the state after a phase of an epoch, for which there is no checkpoint."""
        self._where = f"{phase!r} of epoch {past.epoch}"
        past = past._replace(epoch=past.epoch - 1)
        return self._at(past, self._with_known(self._blank, before), before)

    def hyperparams(self, state: TrainState) -> dict[str, float]:
        """Read the optimizer's hyperparameters; of a population the largest of its members."""
        found = {name: get_hyperparam(state.opt_state, name) for name in self._names}
        return {
            name if len(leaves) == 1 else f"{name}/{group}": float(np.max(np.asarray(leaf)))
            for name, leaves in found.items()
            for group, leaf in leaves.items()
        }

    @contextlib.contextmanager
    def track_hook(self, hook: str) -> Iterator[None]:
        """Note which hook runs."""
        self._hook = hook
        try:
            yield
        finally:
            self._hook = None

    def _without_template(self) -> TrainState:
        trees: dict[str, PyTree] = {
            field: MissingTree(field, self._refuse, lambda: self._hook is not None)
            for field in ("params", "opt_state", "model_state", "carry")
        }
        count: Any = np.int32(0)
        trees["rng"] = MissingArray("rng", self._refuse)
        return TrainState(count, count, **trees)

    def _blanked(self, template: TrainState) -> tuple[TrainState, list[int]]:
        """Replace what training changes by placeholders; also return the places of the rest."""
        optimizer = template.opt_state
        set_by_hooks = {
            id(leaf) for name in self._names for leaf in get_hyperparam(optimizer, name).values()
        }
        nodes = jax.tree.leaves(optimizer, is_leaf=lambda node: isinstance(node, FrozenState))
        set_by_hooks |= {id(node.live) for node in nodes if isinstance(node, FrozenState)}
        pairs, structure = jax.tree_util.tree_flatten_with_path(strip_host_fields(template))
        leaves, known = [], []
        for place, (path, leaf) in enumerate(pairs):
            name = format_path(path)
            if id(leaf) in set_by_hooks or name in SET_BY_HOOKS:
                known.append(place)
                leaves.append(leaf)
            else:
                leaves.append(MissingArray(name, self._refuse, like=leaf))
        return jax.tree.unflatten(structure, leaves), known

    def _with_known(self, state: TrainState, before: TrainState) -> TrainState:
        """Put the values that only hooks set into a state."""
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
        """Set step and epoch to those of an epoch, and keep the previous hook states."""
        counts: tuple[Any, ...] = np.int32(past.step), np.int32(past.epoch)
        if self._template is not None:  # phases need arrays of jax, which cost 30 us each
            steps = np.full(self._template.step.shape, past.step, np.int32)
            counts = jnp.asarray(steps), jnp.asarray(counts[1])
        stop, hook_state = (False, {}) if before is None else (before.stop, before.hook_state)
        step, epoch = counts
        return device.replace(step=step, epoch=epoch, stop=stop, scores={}, hook_state=hook_state)

    def _restore(self, epoch: int) -> TrainState | None:
        """Restore the checkpoint of an epoch, if there is one that fits."""
        if self._template is None or epoch not in self._saved_epochs:
            return None
        target = self._template.replace(hook_state={}, scores={})
        try:
            return restore(self._past.row.directory, target, epoch=epoch)
        except ValueError as error:  # which only matters if a hook uses the state
            lines = str(error).split("\n")  # the first and the last are advice for training
            self._misfits[epoch] = "\n".join(lines[1:-1] or lines)
        except (DamagedCheckpoint, OSError) as error:
            self._unreadable[epoch] = str(error)
        return None

    def _refuse(self, what: str) -> NoReturn:
        hook = "a hook" if self._hook is None else f"hook {self._hook!r}"
        if self._saved_epochs and not self._misfits:
            self._restore(max(self._saved_epochs))  # to see whether the template fits at all
        if self._misfits:
            epoch, listed = next(iter(self._misfits.items()))
            raise NotRecorded(
                f"{hook} uses {what} at {self._where}, but the given state does not fit checkpoint "
                f"{epoch} of run {self._past.row.name!r}:\n{listed}\n"
                "give the state that the run began with: same network, optimizer and settings"
            )
        epochs = ", ".join(map(str, sorted(self._saved_epochs))) or "none"
        lines = [
            f"{hook} uses {what} at {self._where}, but only metrics are recorded: run "
            f"{self._past.row.name!r} has checkpoints of epochs {epochs}"
        ]
        if self._template is None:
            lines.append(
                "give backtest the state that the run began with, state=task.init(key, example): "
                "then hooks see the checkpoints and the optimizer's hyperparameters"
            )
        lines += [f"epoch {epoch}: {reason}" for epoch, reason in self._unreadable.items()]
        raise NotRecorded("\n  ".join(lines))
