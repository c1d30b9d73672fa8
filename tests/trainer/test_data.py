"""Sources: each epoch's data from a key and the epoch, whole, in order where it matters."""

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from trainer import data
from trainer.state import TrainState, data_key


def _numbers(n):
    return {"inputs": np.arange(n, dtype=np.float32)[:, None], "labels": np.arange(n) % 3}


def _state(epoch=0, seed=0):
    state = TrainState.create(params={}, rng=jax.random.key(seed))
    return state.replace(epoch=state.epoch + epoch)


def _seen(feed, state, masked=False):
    """Every example of an epoch, batch by batch."""
    batches = []
    for piece in feed.pieces(state, None):
        rows = feed.rows(piece, data_key(state))
        for number in range(len(jax.tree.leaves(rows)[0])):
            batch = feed.batch(piece, jax.tree.map(lambda rows, n=number: rows[n], rows))
            if masked:
                batch, mask = batch
                batches.append(np.asarray(batch["inputs"])[np.asarray(mask), 0])
            else:
                batches.append(np.asarray(batch["inputs"])[:, 0])
    return batches


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_training_sees_each_example_at_most_once_in_whole_batches(n, batch_size, epoch):
    if n < batch_size:
        return
    batches = _seen(data.Arrays(_numbers(n), batch_size).training(), _state(epoch))
    chex.assert_shape(batches, (batch_size,))
    seen = np.concatenate(batches)
    assert len(seen) == n // batch_size * batch_size
    assert len(set(seen)) == len(seen)


@given(st.integers(1, 30), st.integers(1, 40))
def test_evaluation_sees_each_example_exactly_once_in_order(n, batch_size):
    batches = _seen(data.Arrays(_numbers(n), batch_size).evaluation(), _state(), masked=True)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(n))


def test_the_order_changes_with_the_epoch_and_the_seed_only():
    feed = data.Arrays(_numbers(20), 5).training()
    first = np.concatenate(_seen(feed, _state()))
    np.testing.assert_array_equal(first, np.concatenate(_seen(feed, _state())))
    assert not np.array_equal(first, np.concatenate(_seen(feed, _state(epoch=1))))
    assert not np.array_equal(first, np.concatenate(_seen(feed, _state(seed=1))))


@pytest.mark.parametrize(
    ("arrays", "batch_size", "said"),
    [
        ({}, 4, "dict of named arrays"),
        ({"inputs": np.zeros((0, 2))}, 4, "at least one example"),
        ({"inputs": np.float32(1)}, 4, "leading axis"),
        ({"inputs": np.zeros(3), "labels": np.zeros(4)}, 2, "equal length; got .*3.*4"),
        ({"inputs": np.zeros(3)}, 0, "batch_size must be at least 1; got 0"),
    ],
)
def test_bad_arrays_are_refused(arrays, batch_size, said):
    with pytest.raises(ValueError, match=said):
        data.Arrays(arrays, batch_size)


def test_fewer_examples_than_a_batch_is_an_error_for_training_and_none_for_evaluation():
    source = data.Arrays(_numbers(3), 4)
    with pytest.raises(ValueError, match="3 examples and batch_size is 4"):
        source.training()
    assert len(np.concatenate(_seen(source.evaluation(), _state(), masked=True))) == 3


def test_digits_are_split_once_and_for_all():
    train, val = data.digits(batch_size=32)
    assert (train.size, val.size) == (1437, 360)
    chex.assert_shape(train.example["inputs"], (32, 8, 8, 1))
    again, _ = data.digits(batch_size=8)
    np.testing.assert_array_equal(train.arrays["inputs"], again.arrays["inputs"])
    pixels = np.asarray(train.arrays["inputs"])
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert set(np.asarray(train.arrays["labels"])) == set(range(10))


def _factory(sizes, calls=None):
    def batches(seed, epoch):
        if calls is not None:
            calls.append((seed, epoch))
        start = 0
        for size in sizes:
            yield {"inputs": np.arange(start, start + size, dtype=np.float32)[:, None]}
            start += size

    return batches


@pytest.mark.parametrize("superbatch", [1, 2, 3, 16])
def test_a_stream_is_seen_whole_and_in_order(superbatch):
    stream = data.Stream(_factory([4, 4, 4, 4, 4]), superbatch)
    np.testing.assert_array_equal(np.concatenate(_seen(stream.training(), _state())), range(20))


@pytest.mark.parametrize("superbatch", [1, 2, 16])
def test_a_streams_short_end_is_dropped_in_training_and_kept_in_evaluation(superbatch):
    stream = data.Stream(_factory([4, 4, 3]), superbatch)
    assert len(np.concatenate(_seen(stream.training(), _state()))) == 8
    seen = np.concatenate(_seen(stream.evaluation(), _state(), masked=True))
    np.testing.assert_array_equal(seen, range(11))


def test_a_factory_is_asked_with_the_runs_seed_and_the_epoch():
    calls = []
    stream = data.Stream(_factory([4], calls))
    for epoch in (0, 1, 1):
        _seen(stream.training(), _state(epoch))
    seeds = {seed for seed, _ in calls[1:]}
    assert [epoch for _, epoch in calls[1:]] == [0, 1, 1]
    assert len(seeds) == 1
    _seen(stream.training(), _state(seed=1))
    assert calls[-1][0] not in seeds


def test_a_list_of_batches_is_a_stream():
    batches = [{"inputs": np.full((2, 1), n, np.float32)} for n in range(3)]
    stream = data.Stream(batches, 2)
    for _ in range(2):
        assert [list(batch) for batch in _seen(stream.training(), _state())] == [
            [0, 0],
            [1, 1],
            [2, 2],
        ]


def test_an_iterator_that_ends_after_one_pass_is_refused():
    with pytest.raises(TypeError, match="pass the function that made it"):
        data.Stream(_factory([4])(0, 0))


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "at least one batch"),
        ([{"inputs": np.zeros((2, 1))}, {"inputs": np.zeros((2, 2))}], "batch 1 .* like the first"),
        ([{"inputs": np.zeros((2, 1))}, {"labels": np.zeros((2, 1))}], "batch 1 .* like the first"),
        ([{"inputs": np.zeros((2, 1))}, {"inputs": np.zeros((3, 1))}], "at most 2 examples"),
        (
            [{"inputs": np.zeros((n, 1))} for n in (2, 1, 2)],
            "batch 1 of epoch 0 has 1 examples and is not the last",
        ),
    ],
)
def test_a_bad_batch_is_named(batches, said):
    with pytest.raises(ValueError, match=said):
        _seen(data.Stream(batches, 2).training(), _state())


def test_a_superbatch_holds_at_least_one_step():
    with pytest.raises(ValueError, match="superbatch must be at least 1"):
        data.Stream([], 0)


def test_training_on_a_stream_equals_training_on_the_same_arrays(task, digits):
    source = digits[0]
    arrays = {name: np.asarray(array) for name, array in source.arrays.items()}

    def batches(seed, epoch):
        state = _state(epoch)
        order = np.asarray(jax.random.permutation(data_key(state), source.size))
        for start in range(0, source.size - 31, 32):
            yield {name: array[order[start : start + 32]] for name, array in arrays.items()}

    state = task.init(jax.random.key(3), source.example).replace(rng=jax.random.key(0))
    resident, _ = trainer.fit(state, trainer.training(task.step, source), epochs=2)
    for superbatch in (2, 4, 16):
        phase = trainer.training(task.step, data.Stream(batches, superbatch))
        streamed, history = trainer.fit(state, phase, epochs=2)
        assert trainer.fingerprint(streamed) == trainer.fingerprint(resident)
        assert history[-1]["train/loss"] > 0


def test_labels_in_a_stream_are_checked_as_they_arrive(task):
    good = {"inputs": np.zeros((4, 8, 8, 1), np.float32), "labels": np.zeros(4, np.int32)}
    bad = {**good, "labels": np.array([0, 1, 10, 2], np.int32)}
    stream = data.Stream([good, good, bad], 1)
    state = task.init(jax.random.key(0), good)
    with pytest.raises(ValueError, match="between 0 and 9.*between 0 and 10"):
        trainer.fit(state, trainer.training(task.step, stream), epochs=1)
