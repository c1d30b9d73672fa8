"""Metrics that merge: by their protocol, and where `clu` is installed, real ones."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data, measures

LABELS = np.array([0, 1, 2, 1, 0, 2, 1])
LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2, 2, 1]]


@flax.struct.dataclass
class Share:
    """How many of the examples are right, as counts that are added."""

    right: jax.Array
    count: jax.Array

    def merge(self, other):
        return Share(self.right + other.right, self.count + other.count)

    def compute(self):
        return self.right / self.count


def shares(state, batch):
    right = batch["inputs"].argmax(1) == batch["labels"]
    return {"accuracy": Share(right.sum(), len(right)), "first": Share(right[0], 1)}


@pytest.fixture(scope="module")
def start():
    return trainer.TrainState.create(params={}, rng=jax.random.key(0))


def evaluate(start, measure, batch_size):
    source = data.Arrays({"inputs": LOGITS, "labels": LABELS}, batch_size)
    return trainer.evaluate(start, trainer.evaluation(measure, source))


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_metrics_are_those_of_the_whole_split(start, batch_size):
    scores = evaluate(start, measures.merged(shares), batch_size)
    assert scores["val/accuracy"] == pytest.approx(5 / 7)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_collections_of_clu(start, batch_size):
    clu_metrics = pytest.importorskip("clu.metrics")

    @flax.struct.dataclass
    class MedianLabel(clu_metrics.CollectingMetric.from_outputs(("labels",))):
        def compute(self):
            return np.median(super().compute()["labels"])

    collection = clu_metrics.Collection.create(
        accuracy=clu_metrics.Accuracy,
        mean=clu_metrics.Average.from_output("number"),
        middle=MedianLabel,
    )

    def measure(state, batch):
        return collection.single_from_model_output(
            logits=batch["inputs"], labels=batch["labels"], number=batch["labels"].astype(float)
        )

    scores = evaluate(start, measures.merged(measure), batch_size)
    assert scores == pytest.approx(
        {"val/accuracy": 5 / 7, "val/mean": LABELS.mean(), "val/middle": np.median(LABELS)}
    )


def test_what_does_not_merge_is_an_error_before_training(start):
    for metrics, match in (
        (lambda s, b: Share(jnp.ones(()), jnp.ones(())), 'got a Share: return {"name": metric}'),
        (lambda s, b: {"loss": jnp.ones(())}, r"got 'loss', an array"),
    ):
        with pytest.raises(TypeError, match=match):
            evaluate(start, measures.merged(metrics), 2)
