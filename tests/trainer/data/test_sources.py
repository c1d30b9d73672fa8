"""Sources as iterables: their length, their batches in order; and errors for other objects."""

from __future__ import annotations

import datetime

import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data

NUMBERS = np.arange(10, dtype=np.float32)[:, None]


def cut(seed, epoch):
    for place in range(0, 10, 4):
        yield {"inputs": NUMBERS[place : place + 4]}


@pytest.fixture
def tokens(tmp_path):
    data.pack_tokens([range(10)], tmp_path / "text.tokens", vocabulary=10)
    return data.Tokens(tmp_path / "text.tokens", batch_size=2, length=4)


@pytest.mark.parametrize(
    "source",
    [
        data.Arrays({"inputs": NUMBERS}, 4),
        data.MemoryMap({"inputs": NUMBERS}, 4),
        data.Stream(list(cut(0, 0))),
        data.Stream(lambda seed, epoch: list(cut(seed, epoch))),
        data.Arrays({"inputs": NUMBERS}, 4, steps_per_epoch=1),
    ],
    ids=["Arrays", "MemoryMap", "Stream of a list", "Stream of a factory", "stretches"],
)
def test_a_source_has_a_length_and_yields_each_example_once_in_order(source):
    batches = list(source)
    assert len(source) == len(batches) == 3
    assert [len(batch["inputs"]) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b["inputs"] for b in source]), NUMBERS)


def test_tokens_mask_labels_of_an_earlier_window(tokens):
    batches = list(tokens)
    assert len(tokens) == len(batches) == 2
    shown = [batch["labels"][batch["mask"]] for batch in batches]
    assert np.concatenate(shown).tolist() == list(range(1, 10))


def test_an_unknown_length_is_an_error():
    source = data.Stream(cut)
    with pytest.raises(TypeError, match=r"generator is known only after.*sum\(1 for _ in source\)"):
        len(source)
    assert source
    assert sum(1 for _ in source) == 3


DAY = np.datetime64("2026-01-01")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"labels": np.array(["cat", "dog"])},
            "'labels'.*must hold numbers; got <U3, such as 'cat'",
        ),
        ({"labels": ["cat", "dog"]}, r"np.unique\(labels, return_inverse=True\)"),
        ({"labels": np.array([b"a", b"b"])}, "'labels'.*got .S1, such as b'a': number the classes"),
        ({"when": np.array([DAY, DAY])}, "'when'.*got datetime64.*subtract a date"),
        ({"when": [datetime.date.today()] * 2}, "'when'.*got object, such as datetime.date"),
        ({"took": np.array([DAY, DAY]) - DAY}, "'took'.*got timedelta64.*divide by a duration"),
        ({"inputs": np.array([{}, None])}, "'inputs'.*got object.*one array of numbers"),
        ({"x": {"deep": np.array([None, 1])}}, "'x/deep'.*must hold numbers; got object"),
    ],
)
@pytest.mark.parametrize(
    "make", [data.Arrays, data.MemoryMap, lambda a, _: data.Stream([a]).example]
)
def test_the_error_names_arrays_without_numbers(make, arrays, said):
    if make is data.MemoryMap and isinstance(arrays.get("labels"), list):
        pytest.skip("a list of strings is one of files")
    with pytest.raises(TypeError, match=said):
        make(arrays, 2)


def test_the_error_names_examples_of_several_lengths():
    with pytest.raises(ValueError, match=r"arrays\['tokens'\].*of one shape; got.*pad them"):
        data.Arrays({"tokens": [[1, 2], [3]]}, 2)


@pytest.mark.parametrize("make", [data.Arrays, lambda a, n: data.Stream([a] * n)])
def test_an_integer_that_does_not_fit_32_bits_is_an_error(state, make):
    arrays = {"inputs": NUMBERS[:2], "id": np.array([1, 2**31])}
    with pytest.raises(
        ValueError, match="'id'.*must fit int32, to which JAX casts int64; got 2147"
    ):
        next(make(arrays, 2).training().pieces(state, None, None))
    kept = data.Arrays({**arrays, "id": np.array([-(2**31), 2**31 - 1])}, 2).arrays["id"]
    assert kept.tolist() == [-(2**31), 2**31 - 1]


def test_bfloat16_booleans_and_lists_are_numbers():
    source = data.Arrays({"a": jnp.ones(2, jnp.bfloat16), "b": [True, False], "c": [1, 2]}, 2)
    assert source.size == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: data.Stream(lambda: []),
            r"must take a seed and an epoch.*<lambda>\(\).*write lambda",
        ),
        (lambda: data.Stream(lambda epoch: []), r"got <lambda>\(epoch\)"),
        (
            lambda: data.Stream(lambda seed, epoch: None).example,
            "returned None: return a list, or yield",
        ),
        (lambda: data.Stream({"inputs": NUMBERS}), "(?s)got {'inputs'.*data.Arrays takes a dict"),
        (lambda: data.Stream(3), "must be a list of batches, or a factory.*got 3"),
        (lambda: data.Stream([], 2.0), "superbatch must be a whole number of at least 1; got 2.0"),
        (
            lambda: data.Arrays({"inputs": NUMBERS}, 4.0),
            "batch_size must be a whole number of at least 1; got 4.0",
        ),
        (
            lambda: data.MemoryMap({"inputs": NUMBERS}, True),
            "batch_size must be a whole number of at least 1",
        ),
    ],
)
def test_bad_arguments_of_a_source_are_errors_at_once(make, said):
    with pytest.raises(TypeError, match=said):
        make()


def test_a_factory_may_have_more_arguments():
    def batches(seed, epoch, size=4):
        return cut(seed, epoch)

    assert len(data.Stream(batches).example["inputs"]) == 4
    assert len(data.Stream(lambda *both: cut(*both)).example["inputs"]) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"inputs": NUMBERS}], r"got list: data.Stream\(batches\) takes a list"),
        ({"inputs": NUMBERS}, r"got dict: data.Arrays\(arrays, batch_size=64\)"),
        (cut(0, 0), r"got generator: data.Stream\(factory\) takes the function \(seed, epoch\)"),
        (cut, r"got function: data.Stream\(factory\)"),
        (NUMBERS, r'got ndarray: data.Arrays\({"inputs": array}'),
        (None, "got NoneType"),
        (data.Arrays, "got Arrays"),
    ],
)
@pytest.mark.parametrize("reads", ["training", "evaluation"])
def test_the_error_names_the_source_for_other_data(task, reads, given, said):
    function = task.step if reads == "training" else task.measure
    with pytest.raises(TypeError, match=f"{reads} reads a source of data.*{said}"):
        getattr(trainer, reads)(function, given)
