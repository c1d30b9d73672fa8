"""Curves: which share a panel, and round numbers for an axis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.host.rendering.panels import choose_ticks, group_panels, split_metric_name


def test_training_and_validation_share_a_panel_and_so_do_layers():
    names = [
        "gradients/norm/a/0",
        "time/epoch_seconds",
        "val/loss",
        "train/accuracy",
        "gradients/norm/a/1",
        "train/loss",
        "system/cpu_percent",
        "size",
    ]
    curves = {name: object() for name in names}
    assert {panel: list(found) for panel, found in group_panels(curves).items()} == {
        "loss": ["val", "train"],
        "accuracy": ["train"],
        "size": [""],
        "gradients/norm": ["a/0", "a/1"],
    }
    chosen = group_panels(curves, ["time/epoch_seconds", "val/loss", "missing"])
    assert chosen == {
        "loss": {"val": curves["val/loss"]},
        "epoch_seconds": {"time": curves["time/epoch_seconds"]},
    }
    assert split_metric_name("gradients/norm") == ("norm", "gradients")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_few_and_between_the_bounds(low, span, whole):
    found = choose_ticks(low, low + span, whole=whole)
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= low + span + slack for tick in found)
    assert len(found) <= 7
    assert len(found) >= 2 or whole
    assert found == sorted(set(found))
