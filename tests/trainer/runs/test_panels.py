"""Curves: where their values are from, which share a panel, and round numbers for an axis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.runs import Store, requests
from trainer.runs.panels import (
    Curve,
    choose_ticks,
    group_panels,
    metric_names,
    read_curves,
    split_metric_name,
)


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


def answer(store, suite, epoch, **scores):
    requests.create_request(store, "one", epoch, suite, checksum="c", time=0.0)
    request = requests.claim_request(store, "worker", [suite], lease=60)
    assert requests.finish_request(
        store, request, {f"test/{name}": v for name, v in scores.items()}
    )


def test_scores_of_evaluators_belong_to_a_run(tmp_path):
    with Store(tmp_path) as store:
        store.write_records("one", 1, 10, {"val/loss": 0.5, "test/loss": 9.0, "text": "Once"})
        store.write_records("one", 1, 15, {"val/loss": 0.4})
        store.write_records("another", 1, 10, {"other": 1.0})
        answer(store, "held", 1, accuracy=0.5, loss=0.25)
        answer(store, "held", 3, accuracy=0.75)
        assert metric_names(store, "one") == ["test/accuracy", "test/loss", "val/loss"]
        assert read_curves(store, "one") == {
            "val/loss": Curve([1], [0.4]),  # the last of an epoch
            "test/loss": Curve([1], [9.0]),  # training's own
            "test/accuracy": Curve([1, 3], [0.5, 0.75]),
        }
        assert read_curves(store, "one", ["test/accuracy"]).keys() == {"test/accuracy"}


def test_scores_of_several_suites_have_names_of_their_own(tmp_path):
    with Store(tmp_path) as store:
        answer(store, "held", 1, accuracy=0.5)
        answer(store, "hard", 1, accuracy=0.25)
        assert read_curves(store, "one") == {
            "held/test/accuracy": Curve([1], [0.5]),
            "hard/test/accuracy": Curve([1], [0.25]),
        }
