"""Averaged parameters with batch statistics that suit them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hooks.base import stateful
from hooks.control.kept_params import check_kept, kept_under, needs_of, recalibration_of
from trainer import Hook, Phase, TrainState, recalibrated


def recalibrate(phase: Phase, *, params: str) -> Hook:
    """Measure batch statistics anew for averaged parameters, and keep both.

    They are at `state.memory["recalibrate/<params>"]`, as `params` and `model_state`; training
    never sees them. `evaluate(val, params="recalibrate/swa")` measures them and
    `keep_best("val/loss", params="recalibrate/swa")` puts the best of them back. It costs a pass
    over the data, forwards alone: `every(5, chain(recalibrate(...), evaluate(...)))` makes fewer.

    Args:
        phase: made by `trainer.recalibration(task, source)`; it is compiled once.
        params: name of a hook that keeps an average, such as `swa`, which must stand before this
            one; or `average`, for that of `supervised(..., average=0.999)`.

    Raises:
        TypeError: there is no phase.
        ValueError: before training, the state keeps no such average.

    Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    2018, section 3.2.
    """
    if not isinstance(phase, Phase) or not phase.changes:
        raise TypeError(
            "recalibrate takes a phase made by trainer.recalibration(task, source); got "
            f"{phase!r:.100}"
        )
    name = recalibration_of(params)

    def chosen(state: TrainState) -> TrainState:
        return state.replace(**kept_under(state, params))

    def init(state: TrainState) -> dict[str, Any]:
        check_kept(state, params)
        phase.verify(state)
        return {"params": state.params, "model_state": state.model_state}

    def update(
        memory: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        found = recalibrated(chosen(state), phase)
        return {"params": found.params, "model_state": found.model_state}, state

    return dataclasses.replace(stateful(name, init, update), needs=needs_of(params))
