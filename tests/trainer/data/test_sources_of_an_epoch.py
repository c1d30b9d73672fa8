"""Sources: each epoch's data follow from a key and the epoch, complete, in order if required."""

from types import SimpleNamespace

import chex
import jax
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import trainer
from trainer import data, losses
from trainer.data.iteration.stream_passes import decode_state, encode_state, initial_position
from trainer.state import TrainState, data_key

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def _numbers(n):
    return {"inputs": np.arange(n, dtype=np.float32)[:, None], "labels": np.arange(n) % 3}


def _state(epoch=0, seed=0):
    state = TrainState.create(params={}, rng=jax.random.key(seed))
    return state.replace(epoch=state.epoch + epoch)


def _seen(feed, state, masked=False):
    """Every example of an epoch, batch by batch."""
    batches = []
    for piece, _ in feed.pieces(state, None, None):
        rows = jax.tree.map(np.asarray, jax.jit(feed.rows)(piece, data_key(state)))
        piece = jax.tree.map(np.asarray, piece)  # where cutting it compiles nothing
        for number in range(len(jax.tree.leaves(rows)[0])):
            batch = feed.batch(piece, jax.tree.map(lambda rows, n=number: rows[n], rows))
            if masked:
                batch, mask = batch
                batches.append(np.asarray(batch["inputs"])[np.asarray(mask), 0])
            else:
                batches.append(np.asarray(batch["inputs"])[:, 0])
    return batches


@settings(max_examples=4)  # each compiles again
@example(n=1, batch_size=1, epoch=0)
@example(n=12, batch_size=12, epoch=5)
@example(n=30, batch_size=7, epoch=1)
@given(n=st.integers(12, 30), batch_size=st.integers(1, 12), epoch=st.integers(0, 5))
def test_training_sees_each_example_at_most_once_in_whole_batches(n, batch_size, epoch):
    batches = _seen(data.Arrays(_numbers(n), batch_size).training(), _state(epoch))
    chex.assert_shape(batches, (batch_size,))
    seen = np.concatenate(batches)
    assert len(seen) == n // batch_size * batch_size
    assert len(set(seen)) == len(seen)


@settings(max_examples=10)
@example(n=1, batch_size=1)
@example(n=3, batch_size=40)
@example(n=30, batch_size=30)
@example(n=30, batch_size=7)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_evaluation_sees_each_example_exactly_once_in_order(n, batch_size):
    batches = _seen(data.Arrays(_numbers(n), batch_size).evaluation(), _state(), masked=True)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(n))


def test_the_order_depends_only_on_the_epoch_and_the_seed():
    feed = data.Arrays(_numbers(20), 5).training()
    first = np.concatenate(_seen(feed, _state()))
    np.testing.assert_array_equal(first, np.concatenate(_seen(feed, _state())))
    assert not np.array_equal(first, np.concatenate(_seen(feed, _state(epoch=1))))
    assert not np.array_equal(first, np.concatenate(_seen(feed, _state(seed=1))))


@pytest.mark.parametrize(
    ("arrays", "batch_size", "said"),
    [
        ({}, 4, "dict of named arrays"),
        ({"inputs": {}}, 4, "dict of named arrays"),
        ({"inputs": {"image": np.float32(1)}}, 4, r"arrays\['inputs/image'\] .* leading axis"),
        ({"inputs": {"a": np.zeros(3), "b": np.zeros(2)}}, 2, "inputs/a.*3.*inputs/b.*2"),
        ({"inputs": np.zeros((0, 2))}, 4, "at least one example"),
        ({"inputs": np.float32(1)}, 4, "leading axis"),
        ({"inputs": np.zeros(3), "labels": np.zeros(4)}, 2, "equal length; got .*3.*4"),
        ({"inputs": np.zeros(3)}, 0, "batch_size must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_arrays_are_errors(arrays, batch_size, said):
    with pytest.raises(ValueError, match=said):
        data.Arrays(arrays, batch_size)


def test_fewer_examples_than_a_batch_is_an_error_only_for_training():
    source = data.Arrays(_numbers(3), 4)
    with pytest.raises(ValueError, match="3 examples and batch_size is 4"):
        source.training()
    assert len(np.concatenate(_seen(source.evaluation(), _state(), masked=True))) == 3


def test_digits_always_have_the_same_split():
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
def test_a_stream_is_read_completely_in_order(superbatch):
    stream = data.Stream(_factory([4, 4, 4, 4, 4]), superbatch)
    np.testing.assert_array_equal(np.concatenate(_seen(stream.training(), _state())), range(20))


@pytest.mark.parametrize("superbatch", [1, 2, 16])
def test_a_smaller_last_batch_is_dropped_in_training_and_kept_in_evaluation(superbatch):
    stream = data.Stream(_factory([4, 4, 3]), superbatch)
    assert len(np.concatenate(_seen(stream.training(), _state()))) == 8
    seen = np.concatenate(_seen(stream.evaluation(), _state(), masked=True))
    np.testing.assert_array_equal(seen, range(11))


def test_a_factory_is_called_with_the_seed_of_the_run_and_the_epoch():
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


def test_an_iterator_that_ends_after_one_pass_is_an_error():
    with pytest.raises(TypeError, match="pass the function that made it"):
        data.Stream(_factory([4])(0, 0))


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "at least one batch"),
        ([{"inputs": np.zeros((2, 1))}, {"inputs": np.zeros((2, 2))}], "batch 2 .* like the first"),
        ([{"inputs": np.zeros((2, 1))}, {"labels": np.zeros((2, 1))}], "batch 2 .* like the first"),
        ([{"inputs": np.zeros((2, 1))}, {"inputs": np.zeros((3, 1))}], "at most 2 examples"),
        ([{"inputs": {"a": np.zeros((2, 1))}}, {"inputs": np.zeros((2, 1))}], "got {'inputs': "),
        (
            [{"inputs": np.zeros((n, 1))} for n in (2, 1, 2)],
            "batch 2 of epoch 1 has 1 examples and is not the last",
        ),
    ],
)
def test_the_error_names_a_bad_batch(batches, said):
    with pytest.raises(ValueError, match=said):
        _seen(data.Stream(batches, 2).training(), _state())


def test_a_superbatch_holds_at_least_one_step():
    with pytest.raises(ValueError, match="superbatch must be a whole number of at least 1"):
        data.Stream([], 0)


@pytest.mark.usefixtures("compiled_fully")
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


def _nested(n):
    numbers = np.arange(n)
    return {
        "inputs": {
            "image": np.ones((n, 2, 2)) * numbers[:, None, None],
            "tokens": numbers[:, None],
        },
        "labels": numbers % 10,
    }


def _nested_sources(n, batch_size):
    whole = _nested(n)
    pieces = [
        jax.tree.map(lambda array, start=start: array[start : start + batch_size], whole)
        for start in range(0, n, batch_size)
    ]
    return data.Arrays(whole, batch_size), data.Stream(pieces, 2)


@pytest.mark.parametrize("source", _nested_sources(7, 3), ids=["Arrays", "Stream"])
def test_inputs_may_be_a_dict_of_arrays(source):
    chex.assert_tree_shape_prefix(source.example, (3,))
    chex.assert_shape(source.example["inputs"]["image"], (3, 2, 2))
    for masked in (False, True):
        feed = source.evaluation() if masked else source.training()
        seen = []
        for piece, _ in feed.pieces(_state(), None, None):
            rows = feed.rows(piece, data_key(_state()))
            for number in range(len(jax.tree.leaves(rows)[0])):
                batch = feed.batch(piece, jax.tree.map(lambda rows, n=number: rows[n], rows))
                batch, mask = batch if masked else (batch, np.ones(3, bool))
                image, tokens = batch["inputs"]["image"], batch["inputs"]["tokens"]
                np.testing.assert_array_equal(image[:, 1, 1], tokens[:, 0])
                np.testing.assert_array_equal(tokens[:, 0] % 10, batch["labels"])
                seen += np.asarray(tokens)[np.asarray(mask), 0].tolist()
        assert len(set(seen)) == len(seen) == (7 if masked else 6)


@pytest.mark.parametrize("source", _nested_sources(12, 4), ids=["Arrays", "Stream"])
def test_a_network_of_two_inputs_trains_and_its_labels_are_checked(source, linear):
    def apply(params, model_state, inputs, *, key, train):
        return linear.apply(params, model_state, inputs["image"], key=key, train=train)

    two = SimpleNamespace(init=lambda key, x: linear.init(key, x["image"]), apply=apply)
    task = trainer.supervised(two, losses.classification, optax.sgd(0.01))
    state = task.init(jax.random.key(0), source.example)
    phases = trainer.training(task.step, source), trainer.evaluation(task.measure, source)
    _, history = trainer.fit(state, phases, epochs=1)
    assert 0 < history[0]["val/loss"] < 10
    wrong = {**_nested(12), "labels": np.arange(12)}
    wrong = data.Stream([wrong]) if isinstance(source, data.Stream) else data.Arrays(wrong, 4)
    with pytest.raises(ValueError, match="between 0 and 9.*between 0 and 11"):
        trainer.fit(state, trainer.training(task.step, wrong), epochs=1)


def _stretch(feed, position, state=None):
    """Every example of a stretch, batch by batch, and the position after it."""
    pieces, after = zip(
        *feed.pieces(_state() if state is None else state, None, position), strict=True
    )
    batches = [batch[:, 0].tolist() for piece in pieces for batch in np.asarray(piece["inputs"])]
    return batches, after[-1]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.integers(0, 3))
def test_epochs_follow_one_another_through_the_passes(passed, steps, superbatch, ragged, start):
    def batches(seed, number):
        for place in range(passed):
            yield {"inputs": np.array([[number], [place]], np.float32)}
        if ragged:
            yield {"inputs": np.array([[-1]], np.float32)}

    wanted = [[n // passed, n % passed] for n in range(start * steps, (start + 2) * steps)]
    place = np.array(divmod(start * steps, passed), np.int32)
    position = {"place": place, "batch_size": np.int32(2)}
    feed = data.Stream(batches, superbatch, steps_per_epoch=steps).training()
    first, position = _stretch(feed, position)
    second, _ = _stretch(feed, position)
    assert first + second == wanted
    again = data.Stream(batches, superbatch, steps_per_epoch=steps).training()
    assert _stretch(again, position)[0] == second


def test_an_epoch_reads_no_further_than_its_end():
    read = []

    def batches(seed, number):
        for place in range(10):
            read.append(place)
            yield {"inputs": np.full((2, 1), place, np.float32)}

    feed = data.Stream(batches, 2, steps_per_epoch=3).training()
    read.clear()
    _, position = _stretch(feed, feed.start)
    assert read == [0, 1, 2]
    _stretch(feed, position)
    assert read[3:] == [3, 4, 5]  # continued, not read again
    _, position = _stretch(feed, feed.start)
    assert read[6:] == [0, 1, 2]
    _stretch(feed, position, _state(seed=1))
    assert read[9:] == [0, 1, 2, 3, 4, 5]  # of another seed: from the start, and skipped forward


def test_an_epoch_that_was_read_half_is_read_again():
    feed = data.Stream(_factory([2] * 9), 1, steps_per_epoch=3).training()
    pieces = feed.pieces(_state(), None, feed.start)
    next(pieces)
    del pieces
    assert _stretch(feed, feed.start)[0] == [[0, 1], [2, 3], [4, 5]]


def test_a_stream_compiles_for_no_more_steps_than_an_epoch_has():
    feed = data.Stream(_factory([2] * 9), 16, steps_per_epoch=3).training()
    chex.assert_shape(feed.example["inputs"], (3, 2, 1))
    assert (feed.steps, data.Stream(_factory([2])).training().steps) == (3, None)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_epoch_has_at_least_one_step(steps):
    with pytest.raises(
        ValueError, match=f"steps_per_epoch must be a whole number of at least 1.*got {steps}"
    ):
        data.Stream([], steps_per_epoch=steps)


def test_an_evaluation_reads_a_whole_pass():
    with pytest.raises(ValueError, match="every example exactly once.*steps_per_epoch=2.*another"):
        data.Stream(_factory([2, 2]), steps_per_epoch=2).evaluation()


@pytest.mark.parametrize("wrapped", [iter, list])
def test_a_run_does_not_resume_with_less_data(wrapped):
    batches = [{"inputs": np.zeros((2, 1))}] * 3
    feed = data.Stream(lambda seed, number: wrapped(batches), steps_per_epoch=2).training()
    with pytest.raises(ValueError, match="pass 5 must have the 5 batches .* got 3: resume with"):
        _stretch(feed, {**feed.start, "place": np.array([4, 5], np.int32)})


@pytest.mark.parametrize("sizes", [[], [1]])
def test_a_pass_without_a_whole_batch_is_an_error(sizes):
    def batches(seed, number):
        return _factory([2, 2] if number == 0 else sizes)(seed, number)

    feed = data.Stream(batches, steps_per_epoch=4).training()
    with pytest.raises(ValueError, match="no whole batch in pass 2"):
        _stretch(feed, feed.start)


def test_the_error_names_a_bad_batch_by_its_place_in_the_pass():
    good, bad = {"inputs": np.zeros((2, 1))}, {"inputs": np.zeros((2, 2))}
    feed = data.Stream([good, good, good, bad], steps_per_epoch=1).training()
    with pytest.raises(ValueError, match="batch 4 of pass 7 .* like the first"):
        _stretch(feed, {**feed.start, "place": np.array([6, 3], np.int32)})


class _Resuming:
    """An iterator over numbers that puts itself back, as Grain's do; `pad` bloats its state."""

    def __init__(self, pad=lambda place: "", wrap=lambda state: state):
        self.place, self.pad, self.wrap = 0, pad, wrap

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return {"inputs": np.full((2, 1), self.place - 1, np.float32)}

    def get_state(self):
        return self.wrap({"place": self.place, "pad": self.pad(self.place)})

    def set_state(self, state):
        self.place = state["place"]


def test_an_iterator_is_restored_from_its_own_state():
    stream = data.Stream(lambda seed, number: _Resuming(), steps_per_epoch=3)
    feed = stream.training()
    chex.assert_shape(feed.start["iterator"], (4096,))
    _, position = _stretch(feed, feed.start)
    chex.assert_trees_all_equal_shapes_and_dtypes(position, feed.start)
    assert decode_state(position["iterator"]) == {"place": 3, "pad": ""}
    # Its own state decides, and not the count:
    position["iterator"] = encode_state({"place": 100}, 4096)
    assert _stretch(stream.training(), position)[0] == [[100] * 2, [101] * 2, [102] * 2]


def test_a_long_state_gets_a_larger_buffer():
    start = initial_position(_Resuming(pad=lambda place: "x" * 1000), 2)
    chex.assert_shape(start["iterator"], (8192,))


def test_a_state_that_outgrows_its_buffer_is_an_error():
    batches = lambda seed, number: _Resuming(pad=lambda place: "x" * (2500 * (place - 1)))  # noqa: E731
    feed = data.Stream(batches, 1, steps_per_epoch=2).training()
    _, position = _stretch(feed, feed.start)
    with pytest.raises(ValueError, match="must fit the 4092 bytes .* got 7.* without get_state"):
        _stretch(feed, position)


def test_a_state_that_cannot_be_encoded_is_an_error_only_where_it_is_needed():
    batches = lambda seed, number: _Resuming(wrap=lambda state: {1, 2})  # noqa: E731
    data.Stream(batches).training()
    with pytest.raises(TypeError, match=r"JSON data or bytes.*got \{1, 2\} .*set is not JSON"):
        data.Stream(batches, steps_per_epoch=2).training()


@given(
    st.one_of(
        st.binary(max_size=100),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_a_state_is_decoded_unchanged(state):
    buffer = encode_state(state, room=1 << 16)
    assert (buffer.shape, buffer.dtype) == ((1 << 16,), np.uint8)
    back = decode_state(buffer)
    assert back == state
    assert type(back) is type(state)
