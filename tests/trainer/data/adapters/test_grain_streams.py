"""Streams of Grain: shuffled by seed and epoch, batched, and resumed at the next batch."""

import functools
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data
from trainer.data.iteration.stream_passes import PassIterator

EXAMPLES = 14


def example(number):
    return {"inputs": np.array([number], np.float32), "labels": number}


def examples():
    return grain.MapDataset.range(EXAMPLES).map(example)


def stream(**settings):
    return data.from_grain(examples(), batch_size=3, superbatch=2, **settings)


def seen(batches):
    return [batch["labels"].tolist() for batch in batches]


def test_a_map_dataset_is_shuffled_by_seed_and_epoch(epoch_of, begun):
    feed = stream().training()
    orders = {}
    for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0)):
        labels = np.concatenate(seen(epoch_of(feed, state=begun(epoch, seed))[0]))
        assert len(set(labels.tolist())) == 12
        orders.setdefault((epoch, seed), set()).add(tuple(labels.tolist()))
    assert [len(found) for found in orders.values()] == [1, 1, 1]
    assert len(set.union(*orders.values())) == 3


def test_without_shuffling_every_example_is_read_once_in_order(epoch_of):
    batches, _ = epoch_of(stream(shuffle=False).evaluation())
    labels = np.concatenate([batch["labels"][mask] for batch, mask in batches])
    np.testing.assert_array_equal(labels, np.arange(EXAMPLES))


def test_batches_stay_as_they_are(epoch_of):
    batched = data.from_grain(examples().batch(7), shuffle=False)
    assert seen(epoch_of(batched.training())[0]) == [list(range(7)), list(range(7, 14))]


def test_shuffled_batches_do_not_resume_with_another_batch_size():
    def whole(batches, where, first):
        return iter(batches)

    def read(size, position, shuffle=True):
        source = data.from_grain(examples().batch(size), shuffle=shuffle)
        return PassIterator(source.batches, whole, size, 0, position)

    three = {"place": np.array([0, 2], np.int32), "batch_size": np.array(3, np.int32)}
    with pytest.raises(ValueError, match="shuffled batches of 3 examples.*with batches of 2"):
        read(2, three)
    assert next(read(2, three, shuffle=False))["labels"].tolist() == [6, 7]
    assert next(read(2, {**three, "place": np.array([1, 0], np.int32)}))["labels"].shape == (2,)


def test_examples_of_an_iterable_are_batched(epoch_of):
    even = examples().to_iter_dataset().filter(lambda example: example["labels"] % 2 == 0)
    batches, _ = epoch_of(data.from_grain(even, batch_size=3).training())
    assert seen(batches) == [[0, 2, 4], [6, 8, 10]]


def test_a_function_shuffles_by_itself(epoch_of, begun):
    asked = []

    def made(seed, epoch):
        asked.append((seed, epoch))
        return grain.MapDataset.range(epoch, epoch + 6).map(example)

    feed = data.from_grain(made, batch_size=3).training()
    assert seen(epoch_of(feed, state=begun(4))[0]) == [[4, 5, 6], [7, 8, 9]]
    assert asked[-1] == (trainer.state.stream_seed(begun(4)), 4)


def loader(*operations):
    return grain.DataLoader(
        data_source=[example(number) for number in range(EXAMPLES)],
        sampler=grain.samplers.SequentialSampler(EXAMPLES, grain.sharding.NoSharding()),
        operations=operations,
        read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
    )


def test_a_loader_batches_by_itself(epoch_of):
    batches, _ = epoch_of(data.from_grain(loader(grain.transforms.Batch(7))).training())
    assert seen(batches) == [list(range(7)), list(range(7, 14))]
    with pytest.raises(TypeError, match="batches of 2 from a DataLoader: add"):
        data.from_grain(loader(), batch_size=2).training()


@pytest.mark.parametrize("dataset", [[1, 2], lambda seed, epoch: [1, 2], "text"])
def test_other_data_sets_are_an_error_before_training(dataset):
    with pytest.raises(TypeError, match="needs a MapDataset.* got (list|str)"):
        data.from_grain(dataset, batch_size=2).training()


@pytest.mark.parametrize("setting", ["batch_size", "superbatch", "steps_per_epoch"])
def test_sizes_are_at_least_one(setting):
    with pytest.raises(ValueError, match=f"{setting} must be a whole number of at least 1.*got 0"):
        data.from_grain(examples(), **{"batch_size": 2, setting: 0})


def step(state, batch):
    params = {"w": state.params["w"] * 0.9 + batch["inputs"][0, 0]}
    return state.replace(step=state.step + 1, params=params), {"first": batch["labels"][0]}


@pytest.mark.parametrize("steps", [None, 3], ids=["passes", "stretches"])
def test_law_5_a_run_resumes_after_any_epoch(steps):
    start = trainer.TrainState.create(params={"w": jnp.zeros(())}, rng=jax.random.key(0))
    made = functools.partial(stream, steps_per_epoch=steps)
    straight, history = trainer.fit(start, trainer.training(step, made()), epochs=4)
    resumed = start
    for epochs in range(1, 5):
        resumed, _ = trainer.fit(resumed, trainer.training(step, made()), epochs=epochs)
    assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)
    assert len({epoch["train/first"] for epoch in history}) > 1


def test_without_grain_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError) as raised:
        data.from_grain(None)
    assert 'pip install "entracte[grain]"' in raised.value.__notes__[0]
