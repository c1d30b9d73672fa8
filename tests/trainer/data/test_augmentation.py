"""Augmentations: pure functions of a key and a batch that change each example separately."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import trainer
from trainer import losses
from trainer.data import augmentation
from trainer.data.augmentation import compose, cut_out, flip, mixup, shift, symmetric_beta

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
SEEDS = st.integers(0, 2**32 - 1)
IMAGES = np.random.default_rng(0).integers(1, 256, (12, 4, 6, 2)).astype(np.uint8)
BATCH = {"inputs": IMAGES.astype(np.float32), "labels": np.arange(12) % 5, "weight": np.ones(12)}
SINGLE = {
    "shift": shift(2),
    "flip": flip(),
    "cut_out": cut_out(3),
    "mixup": mixup(0.4, classes=5),
    "compose": compose(shift(1), flip(), cut_out(2), mixup(1.0, classes=5)),
}
JITTED = {name: jax.jit(function) for name, function in SINGLE.items()}
NOTHING = jax.jit(compose(shift(0), flip(0.0)))
every = pytest.mark.parametrize("name", SINGLE)


def _many(augment, image, count=400):
    """Give an augmentation of `count` copies of one image `[height, width]`."""
    images = jnp.broadcast_to(jnp.asarray(image)[None, :, :, None], (count, *image.shape, 1))
    return np.asarray(jax.jit(augment)(KEY, {"inputs": images})["inputs"])[..., 0]


def _moved(image, down, right):
    """Move `[height, width, ...]` by hand; zeros come in."""
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


@every
def test_equal_keys_give_equal_batches_and_others_do_not(name):
    first = JITTED[name](KEY, BATCH)
    chex.assert_trees_all_equal(first, JITTED[name](KEY, BATCH))
    other = JITTED[name](jax.random.key(1), BATCH)
    assert not np.array_equal(first["inputs"], other["inputs"])


@every
def test_jit_changes_no_result_and_no_argument_is_changed(name):
    batch = {key: value.copy() for key, value in BATCH.items()}
    plain = SINGLE[name](KEY, batch)
    chex.assert_trees_all_close(plain, JITTED[name](KEY, batch), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(batch, BATCH)
    np.testing.assert_array_equal(plain["weight"], BATCH["weight"])
    assert plain.keys() == BATCH.keys()


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes_of_the_inputs_are_kept(name, dtype):
    batch = BATCH | {"inputs": jnp.asarray(BATCH["inputs"], dtype)}
    after = jax.eval_shape(SINGLE[name], KEY, batch)["inputs"]
    assert (after.shape, after.dtype) == (IMAGES.shape, dtype)


@pytest.mark.parametrize("name", ["shift", "flip", "cut_out"])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_integers_stay_integers(name, dtype):
    images = IMAGES.astype(dtype)
    after = JITTED[name](KEY, {"inputs": images})["inputs"]
    assert after.dtype == dtype
    floats = JITTED[name](KEY, {"inputs": images.astype(np.float32)})["inputs"]
    np.testing.assert_array_equal(after.astype(np.float32), floats)


@given(SEEDS)
def test_each_image_is_moved_as_a_whole(seed):
    after = np.asarray(JITTED["shift"](jax.random.key(seed), {"inputs": IMAGES})["inputs"])
    for before, moved in zip(IMAGES, after, strict=True):
        moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        assert any(np.array_equal(_moved(before, *move), moved) for move in moves)


def test_every_shift_is_equally_likely():
    spot = np.zeros((5, 5), np.float32)
    spot[2, 2] = 1
    after = _many(shift(1), spot, count=900)
    hits = after.sum(axis=0)
    assert hits.sum() == 900
    assert (hits[1:4, 1:4] > 60).all()  # 100 each, with a deviation of 10
    assert hits[0].sum() == hits[4].sum() == hits[:, 0].sum() == hits[:, 4].sum() == 0


def test_images_that_are_not_square_shift_along_both_axes():
    spot = np.zeros((3, 7), np.float32)
    spot[1, 3] = 1
    rows, columns = np.nonzero(_many(shift(1), spot).sum(axis=0))
    assert (set(rows), set(columns)) == ({0, 1, 2}, {2, 3, 4})


@given(SEEDS)
def test_a_shift_by_zero_and_a_flip_of_probability_zero_are_the_identity(seed):
    same = NOTHING(jax.random.key(seed), {"inputs": IMAGES})["inputs"]
    np.testing.assert_array_equal(same, IMAGES)


def test_a_flip_mirrors_horizontally():
    always = flip(1.0)
    once = always(KEY, {"inputs": IMAGES})
    np.testing.assert_array_equal(once["inputs"], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(always(KEY, once)["inputs"], IMAGES)


def test_a_flip_has_its_probability():
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    after = _many(flip(0.25), image)
    flipped = (after == image[:, ::-1]).all(axis=(1, 2))
    assert (flipped | (after == image).all(axis=(1, 2))).all()
    assert 60 < flipped.sum() < 140  # 100, with a deviation of 9


@given(SEEDS)
def test_a_square_is_cut_out_and_the_rest_is_kept(seed):
    after = np.asarray(JITTED["cut_out"](jax.random.key(seed), {"inputs": IMAGES})["inputs"])
    for before, image in zip(IMAGES, after, strict=True):
        gone = (image == 0).all(axis=-1)
        rows, columns = np.nonzero(gone)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert gone.sum() == height * width  # one rectangle
        assert height in (2, 3)
        assert width in (2, 3)  # at a border one of three lies outside
        np.testing.assert_array_equal(image[~gone], before[~gone])


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        (1, (2, 2), [[0.75, 0.75], [0.75, 0.75]]),
        (2, (2, 2), [[0.0, 0.5], [0.5, 0.75]]),  # the middle is the lower right of the four
        (3, (1, 3), [[1 / 3, 0.0, 1 / 3]]),
        (9, (2, 3), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_the_centre_is_equally_likely_everywhere(size, shape, expected):
    kept = _many(cut_out(size), np.ones(shape, np.float32)).mean(axis=0)
    np.testing.assert_allclose(kept, expected, atol=0.1)  # four deviations


def test_mixup_uses_one_weight_for_inputs_and_labels():
    labels = np.array([0, 1, 2, 1])
    batch = {"inputs": np.eye(4, dtype=np.float32), "labels": labels}
    mix = jax.jit(mixup(1.0, classes=3))
    for seed in range(5):
        mixed = mix(jax.random.key(seed), batch)
        # Row i of the inputs holds by how much each example went into it.
        np.testing.assert_allclose(mixed["inputs"] @ np.eye(3)[labels], mixed["labels"], rtol=1e-6)
        assert ((mixed["inputs"] > 0).sum(axis=1) <= 2).all()  # a pair each
        assert (jnp.diag(mixed["inputs"]) > 0).all()


def test_mixup_pairs_by_a_permutation():
    batch = {"inputs": np.eye(32, dtype=np.float32), "labels": np.arange(32)}
    mixed = np.asarray(jax.jit(mixup(3.0, classes=32))(KEY, batch)["inputs"])
    weights = np.diag(mixed)
    partners = (mixed - np.diag(weights)).argmax(axis=1)
    partners = np.where(weights == 1, np.arange(32), partners)
    assert sorted(partners) == list(range(32))
    assert (partners != np.arange(32)).sum() > 20
    assert len(np.unique(weights)) > 20  # a weight each


@given(SEEDS)
def test_mixup_is_linear_and_its_labels_are_probabilities(seed):
    key = jax.random.key(seed)
    mixed = JITTED["mixup"](key, BATCH)
    assert mixed["labels"].shape == (12, 5)
    assert mixed["labels"].dtype == jnp.float32
    assert (mixed["labels"] >= 0).all()
    np.testing.assert_allclose(mixed["labels"].sum(axis=1), 1, rtol=1e-6)
    other = JITTED["mixup"](key, BATCH | {"inputs": 2 * BATCH["inputs"] + 3})
    np.testing.assert_allclose(other["inputs"], 2 * mixed["inputs"] + 3, rtol=1e-5)


def test_a_step_trains_on_augmented_batches(task, linear, start, digits):
    batch = digits[0].example
    augment = compose(shift(1), mixup(1.0, classes=10))
    augmenting = trainer.supervised(
        linear, losses.classification, optax.adam(1e-2), augment=augment
    )
    after, metrics = jax.jit(augmenting.step)(start, batch)
    expected = jax.jit(task.step)(start, jax.jit(augment)(start.key("augment"), batch))
    chex.assert_trees_all_close(
        (after.params, metrics), (expected[0].params, expected[1]), rtol=1e-4
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_weights_have_the_requested_distribution(alpha):
    draws = np.asarray(symmetric_beta(jax.random.key(1), alpha, (2000,)), np.float64)
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1e4])
def test_weights_of_extreme_settings_stay_in_range(alpha):
    draws = np.asarray(symmetric_beta(KEY, alpha, (5000,)), np.float64)
    assert ((draws >= 0) & (draws <= 1)).all()
    np.testing.assert_allclose(draws.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(draws.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


def test_composed_augmentations_run_in_order():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    double = lambda key, batch: {"inputs": batch["inputs"] * 2}  # noqa: E731
    less = lambda key, batch: {"inputs": batch["inputs"] - 1}  # noqa: E731
    after = compose(double, less)(KEY, {"inputs": image})
    np.testing.assert_array_equal(after["inputs"], image * 2 - 1)
    assert compose()(KEY, BATCH) == BATCH


def test_one_more_at_the_end_does_not_change_the_others():
    def draw(name):
        return lambda key, batch: {**batch, name: jax.random.uniform(key)}

    two = jax.jit(compose(draw("a"), draw("b")))(KEY, {})
    three = jax.jit(compose(draw("a"), draw("b"), draw("c")))(KEY, {})
    assert len({float(value) for value in three.values()}) == 3
    assert {name: three[name] for name in "ab"} == two


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda: shift(-1),
            ValueError,
            "shift: pixels must be a whole number of at least 0; got -1",
        ),
        (
            lambda: shift(1.5),
            TypeError,
            "shift: pixels must be a whole number of at least 0; got 1.5",
        ),
        (
            lambda: shift(True),
            TypeError,
            "shift: pixels must be a whole number of at least 0; got True",
        ),
        (lambda: flip(1.1), ValueError, "flip: probability must be between 0 and 1; got 1.1"),
        (
            lambda: cut_out(0),
            ValueError,
            "cut_out: size must be a whole number of at least 1; got 0",
        ),
        (lambda: mixup(0, classes=2), ValueError, "mixup: alpha must be .* above 0; got 0"),
        (lambda: mixup(float("nan"), classes=2), ValueError, "alpha must be .*; got nan"),
        (
            lambda: mixup(0.2, classes=0),
            ValueError,
            "mixup: classes must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_settings_out_of_range_are_errors_at_once(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize("name", ["shift", "flip", "cut_out"])
@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        ({"inputs": np.ones((8, 8))}, ValueError, r"\[batch, height, width, channels\]; got.*8, 8"),
        ({"inputs": {"image": IMAGES}}, TypeError, "got a dict of .*image.*write a function"),
        ({"images": IMAGES}, ValueError, r"changes batch\['inputs'\]; there is: .*images"),
    ],
)
def test_other_inputs_are_errors_when_traced(name, batch, error, said):
    with pytest.raises(error, match=f"{name} .*{said}"):
        jax.eval_shape(SINGLE[name], KEY, batch)


def test_shifting_by_more_than_the_image_is_an_error():
    with pytest.raises(ValueError, match=r"shift\(4\) needs images of at least 5x5; got .*4, 6, 2"):
        jax.eval_shape(shift(4), KEY, {"inputs": IMAGES})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"inputs": IMAGES}, TypeError, "must be floating; got uint8; convert them"),
        ({"labels": np.ones((12, 5))}, TypeError, r"integer labels \[batch\]; got float"),
        ({"labels": np.arange(3)}, ValueError, r"got shape \(3,\) for inputs \(12, 4, 6, 2\)"),
    ],
)
def test_mixup_checks_inputs_and_labels(change, error, said):
    with pytest.raises(error, match=f"mixup .*{said}"):
        jax.eval_shape(SINGLE["mixup"], KEY, BATCH | change)


def test_mixup_needs_labels():
    with pytest.raises(ValueError, match=r"mixes batch\['labels'\]; there is: \['inputs'\]"):
        augmentation.mixup(0.2, classes=2)(KEY, {"inputs": np.ones((2, 3))})
