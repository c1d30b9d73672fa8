"""Evaluation between epochs: exact scores of a whole split, under the phase's name."""

from __future__ import annotations

from collections.abc import Mapping

from trainer import Hook, Phase, TrainState


def evaluate(phase: Phase, *, params: str | None = None) -> Hook:
    """Measure a split and write its scores, such as `val/loss` and `val/accuracy`.

    The phase is compiled once, whatever else changes, and never takes the state's buffers.

    Args:
        phase: made by `trainer.evaluation`; its name is the prefix of the scores.
        params: name of a hook that keeps parameters, such as `average_params`, to measure in the
            place of the trained ones. It must stand before this one.

    Raises:
        ValueError: the phase changes the state.
    """
    if phase.changes:
        raise ValueError(
            f"evaluate needs a phase that leaves the state as it is, made by trainer.evaluation; "
            f"phase {phase.name!r} may change it"
        )

    def names(state: TrainState) -> tuple[str, ...]:
        keys = phase.keys(state)
        phase.verify(state)
        return keys

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        measured = state
        if params is not None:
            measured = state.replace(params=state.memory[params]["params"])
        _, _, numbers = phase.execute(measured, None, donate=False)
        scores, _, _ = numbers.read()
        return state.replace(scores={**state.scores, **scores})

    return Hook(run, f"evaluate/{phase.name}", writes=names, needs=(params,) if params else ())
