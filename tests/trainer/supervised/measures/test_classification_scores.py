"""Scores of classifiers, against scikit-learn on predictions of real digits."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import trainer
from trainer import data, measures


def linear(state, batch):
    """Logits `[batch, classes]` of a fixed linear classifier."""
    images = batch["inputs"].reshape(len(batch["labels"]), -1)
    return images @ state.params["w"]


def positive(state, batch):
    return linear(state, batch)[:, 1] - 1.5


@pytest.fixture(scope="module")
def digits():
    """A state, and (inputs, labels) of 107 digits that it classifies rather well."""
    train, val = (next(iter(source)) for source in data.digits(batch_size=107))
    images, labels = np.asarray(train["inputs"]).reshape(107, -1), np.asarray(train["labels"])
    weights = np.linalg.lstsq(images, 5.0 * np.eye(10, dtype=np.float32)[labels], rcond=None)[0]
    state = trainer.TrainState.create(
        params={"w": jnp.asarray(weights, jnp.float32)}, rng=jax.random.key(0)
    )
    return state, {name: np.asarray(array) for name, array in val.items()}


def with_two_classes(arrays):
    return {**arrays, "labels": (arrays["labels"] == 1).astype(np.int32)}


def compare(digits, measure, expected, arrays=None):
    """Evaluate at two batch sizes, with smaller last batches, from the device and the host."""
    state, given = digits
    given = given if arrays is None else arrays
    sources = data.Arrays(given, 16), data.MemoryMap(given, 50, superbatch=2)
    for source in sources:
        scores = trainer.evaluate(state, trainer.evaluation(measure, source))
        assert scores == pytest.approx(
            {f"val/{name}": value for name, value in expected.items()}, abs=1e-6
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_those_of_scikit_learn(digits, weighted):
    """All in one phase, which shares one pass over the data."""
    state, arrays = digits
    logits = np.asarray(linear(state, arrays))
    labels, predicted = arrays["labels"], logits.argmax(1)
    assert 0.5 < np.mean(labels == predicted) < 0.95
    weights = None
    if weighted:
        weights = np.random.default_rng(0).integers(0, 3, len(labels)).astype(np.float32)
        arrays = {**arrays, "weights": weights}
    of = {"sample_weight": weights}
    probabilities = np.asarray(jax.nn.softmax(logits))
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, **of)
    expected = {
        "auc": sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", **of),
        **dict(
            zip(("precision", "recall", "f1"), _scores(labels, predicted, weights), strict=True)
        ),
        **{f"confusion/{a}/{b}": matrix[a, b] for a in range(10) for b in range(10)},
    }
    together = [
        measures.auc(linear),
        measures.f1(linear),
        measures.confusion_matrix(linear, classes=10),
    ]
    compare(digits, together, expected, arrays)


def _scores(labels, predicted, weights, average="macro"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sklearn_metrics.precision_recall_fscore_support(
            labels, predicted, average=average, sample_weight=weights
        )[:3]


def test_two_classes_by_one_logit(digits):
    state, arrays = digits
    arrays = with_two_classes(arrays)
    logits = np.asarray(positive(state, arrays))
    precision, recall, f1 = _scores(arrays["labels"], logits > 0, None, "binary")
    expected = {
        "auc": sklearn_metrics.roc_auc_score(arrays["labels"], logits),
        **{"precision": precision, "recall": recall, "f1": f1},
    }
    assert 0 < f1 < 1
    compare(
        digits, [measures.auc(positive), measures.f1(positive, average="binary")], expected, arrays
    )


def test_micro_averages_are_the_accuracy(digits):
    state, arrays = digits
    accuracy = np.mean(np.asarray(linear(state, arrays)).argmax(1) == arrays["labels"])
    expected = dict.fromkeys(("f1", "precision", "recall"), accuracy)
    compare(digits, measures.f1(linear, average="micro"), expected)


def test_calibration_error_by_hand(digits):
    """Bins of probability 0.7 (one of two right) and 0.9 (three of three): (2*0.2 + 3*0.1) / 5."""
    probability = np.array([0.7, 0.7, 0.9, 0.9, 0.9], np.float32)
    arrays = {
        "inputs": np.log(probability / (1 - probability)),
        "labels": np.array([1, 0, 1, 1, 1]),
    }
    measure = measures.calibration_error(lambda state, batch: batch["inputs"], bins=10)
    compare(digits, measure, {"calibration_error": 0.14}, arrays)


def test_a_class_without_examples_has_no_auc(digits):
    arrays = {"inputs": np.array([0.5, 1.0], np.float32), "labels": np.array([1, 1])}
    phase = trainer.evaluation(measures.auc(lambda s, b: b["inputs"]), data.Arrays(arrays, 2))
    assert np.isnan(trainer.evaluate(digits[0], phase)["val/auc"])


def test_other_forms_are_an_error_before_training(digits):
    state, arrays = digits
    with pytest.raises(ValueError, match=r"average macro, micro or binary; got 'marco'.*macro"):
        measures.f1(linear, average="marco")
    with pytest.raises(TypeError, match=r"measures\.auc takes outputs.*pass task\.outputs"):
        measures.auc(3)
    for outputs in (lambda s, b: b["inputs"], lambda s, b: linear(s, b)[:3]):
        phase = trainer.evaluation(measures.f1(outputs), data.Arrays(arrays, 16))
        with pytest.raises(ValueError, match=r"needs logits \[batch, classes\] or \[batch\]"):
            phase.list_metric_names(state)
