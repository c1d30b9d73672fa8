"""Averaged parameters with batch statistics that suit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooks.base import stateful
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    recalibration_name,
    select_params,
)
from trainer import Hook, Phase, TrainState, recalibrate_batch_stats


def recalibrate(phase: Phase, *, params: str) -> Hook:
    """Compute the batch statistics of averaged parameters, and keep both.

    They are at `state.hook_state["recalibrate/<params>"]`, as `params` and `model_state`. Training
    never sees them; `evaluate` and `keep_best` do, with `params="recalibrate/swa"`. It costs a
    forward pass over the data: `every(5, chain(recalibrate(...), evaluate(...)))` makes fewer.

    Args:
        phase: made by `trainer.recalibration(task, source)`; it is compiled once.
        params: name of a hook that keeps an average, such as `swa`, which must stand before this
            one; or `average`, for that of `supervised(..., average=0.999)`.

    Raises:
        TypeError: the phase is not one.
        ValueError: before training, the state keeps no such average.

    Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    2018, section 3.2.
    """
    if not isinstance(phase, Phase) or not phase.updates_state:
        raise TypeError(
            "recalibrate takes a phase made by trainer.recalibration(task, source); got "
            f"{phase!r:.100}"
        )

    def init(state: TrainState) -> dict[str, Any]:
        check_step_average(state, params)
        phase.verify(state)
        return {"params": state.params, "model_state": state.model_state}

    def update(
        kept: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        averaged = state.replace(**select_params(state, params))
        found = recalibrate_batch_stats(averaged, phase)
        return {"params": found.params, "model_state": found.model_state}, state

    required = list_required_states(params)
    return stateful(recalibration_name(params), init, update, required_hook_states=required)
