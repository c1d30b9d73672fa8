"""Evaluation without training: exact scores of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value
from trainer.phases.phase import Phase
from trainer.state import TrainState, attach_host_fields, require_state, strip_host_fields


def evaluate(state: TrainState, phases: Phase | Sequence[Phase]) -> dict[str, float]:
    """Measure a state exactly on one or several splits.

    With `restore`, two lines evaluate the checkpoint of another run:

        state = trainer.restore("runs/digits", task.init(key, train.example), best="val/loss")
        scores = trainer.evaluate(state, trainer.evaluation(task.measure, test, name="test"))

    Args:
        state: to measure; it stays unchanged.
        phases: from `trainer.evaluation`; their names are the prefixes of the scores.

    Returns:
        Scores by name, such as `test/loss` and `test/accuracy`.

    Raises:
        TypeError: an argument is not a phase.
        ValueError: a phase changes the state, two phases share a name, or there is no phase.

    >>> import numpy as np
    >>> from trainer import data, evaluation
    >>> source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
    >>> phase = evaluation(lambda state, batch: {"error": batch["inputs"] - state.params}, source)
    >>> evaluate(TrainState.create(params=jnp.float32(1), rng=jax.random.key(0)), phase)
    {'val/error': 1.0}
    """
    require_state("evaluate", state)
    chosen = check_evaluation_phases(phases)
    state = attach_host_fields(jax.tree.map(jnp.asarray, strip_host_fields(state)), state)
    for phase in chosen:
        phase.verify(state)
    measured = [phase.execute(state, None, donate=False)[2] for phase in chosen]
    return {name: score for one in measured for name, score in one.read()[0].items()}


def check_evaluation_phases(phases: Phase | Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the phases of an evaluation as a tuple, after checking them.

    Raises:
        TypeError, ValueError: as `evaluate`.
    """
    several = isinstance(phases, Sequence) and not hasattr(phases, "_fields")
    chosen: tuple[Any, ...] = tuple(phases) if several else (phases,)  # type: ignore[arg-type]
    for phase in chosen:
        if not isinstance(phase, Phase):
            raise TypeError(
                f"evaluate takes phases made by trainer.evaluation; got {describe_value(phase)}: "
                "make one, trainer.evaluation(task.measure, source)"
            )
        if phase.updates_state:
            raise ValueError(
                f"evaluate needs phases that leave the state as it is, made by trainer.evaluation; "
                f"phase {phase.name!r} may change it"
            )
    names = [phase.name for phase in chosen]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"evaluate needs phases with names of their own; got {names}: "
            'trainer.evaluation(task.measure, test, name="test")'
        )
    return chosen
