"""Curves of recorded runs: where their values are from."""

from __future__ import annotations

from trainer.host.rendering.panels import Curve
from trainer.runs import Store, requests
from trainer.runs.recorded_curves import metric_names, read_curves


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
