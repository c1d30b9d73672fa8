"""A run that resumes with another batch size: no example is skipped, and none repeats."""

from __future__ import annotations

import logging

import grain
import jax
import numpy as np
import pytest

import trainer
from trainer import data

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROWS, STEPS = 96, 4
READING = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def order(seed, number):
    return np.random.default_rng((seed, number)).permutation(ROWS)


def row(number):
    return {"inputs": np.float32([number])}


def batch(numbers):
    return {"inputs": np.asarray(numbers, np.float32)[:, None]}


def generated(size):
    def batches(seed, number):
        numbers = order(seed, number)
        for place in range(0, ROWS, size):
            yield batch(numbers[place : place + size])

    return batches


def mapped(seed, number):
    return grain.MapDataset.range(ROWS).shuffle(seed=(seed + number) % 2**32).map(row)


def iterated(seed, number):
    return mapped(seed, number).to_iter_dataset(READING)


class Batched(grain.transforms.Map):
    def map(self, element):
        return batch(element)


def loader(size):
    return lambda seed, number: grain.DataLoader(
        data_source=range(ROWS),
        sampler=grain.samplers.IndexSampler(
            ROWS,
            shuffle=True,
            seed=(seed + number) % 2**32,
            num_epochs=1,
            shard_options=grain.sharding.NoSharding(),
        ),
        operations=[grain.transforms.Batch(size), Batched()],
        read_options=READING,
    )


ALL = batch(np.arange(ROWS))
STRETCH = {"steps_per_epoch": STEPS}
SOURCES = {
    "Arrays": lambda size: data.Arrays(ALL, size, **STRETCH),
    "MemoryMap": lambda size: data.MemoryMap(ALL, size, **STRETCH),
    "Stream of a generator": lambda size: data.Stream(generated(size), 2, **STRETCH),
    "Stream of a list": lambda size: data.Stream(list(generated(size)(0, 0)), 2, **STRETCH),
    "grain, shuffled again": lambda size: data.from_grain(
        grain.MapDataset.range(ROWS).map(row), batch_size=size, **STRETCH
    ),
    "grain, a factory": lambda size: data.from_grain(mapped, batch_size=size, **STRETCH),
    "grain, iterated": lambda size: data.from_grain(iterated, batch_size=size, **STRETCH),
    "grain, a loader": lambda size: data.from_grain(loader(size), **STRETCH),
}


def read(source, position=None):
    """Give the rows of one epoch from a position on, and the position after it."""
    state = trainer.TrainState.create(params={}, rng=jax.random.key(7))
    feed, seen = source.training(), []
    assert jax.tree.structure(position or feed.start) == jax.tree.structure(feed.start)
    for piece, after in feed.pieces(state, None, position or feed.start):
        rows = jax.tree.map(np.asarray, jax.jit(feed.rows)(piece, jax.random.key(0)))
        piece, position = jax.tree.map(np.asarray, piece), after  # where nothing compiles
        for step in range(len(jax.tree.leaves(rows)[0])):
            one = feed.batch(piece, jax.tree.map(lambda rows, n=step: rows[n], rows))
            seen += np.asarray(one["inputs"])[:, 0].astype(int).tolist()
    return seen, position


@pytest.mark.parametrize(("before", "now"), [(8, 16), (16, 8)])
@pytest.mark.parametrize("name", SOURCES)
def test_every_row_comes_once_where_the_sizes_divide(name, before, now, caplog):
    first, position = read(SOURCES[name](before))
    rest = []
    while len(first) + len(rest) < ROWS:
        more, position = read(SOURCES[name](now), position)
        rest += more
    assert sorted(first + rest[: ROWS - len(first)]) == list(range(ROWS))
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 1, "once, and not at every later start"
    assert f"had batches of {before} examples, and resumes with {now}: " in said[0]


@pytest.mark.parametrize("name", SOURCES)
def test_none_is_skipped_where_they_do_not_and_a_warning_counts_repeats(name, caplog):
    first, position = read(SOURCES[name](8))
    rest, _ = read(SOURCES[name](20), position)  # 32 rows are a batch of 20, and 12 over
    assert rest[:12] == first[20:]
    assert len(set(first + rest[12:60])) == 80, "four batches of 20 are a pass"
    assert "32 examples of pass 1 were read, of which 12 repeat" in caplog.text


def test_a_map_dataset_resumes_without_reading():
    got = []

    def noted(number):
        got.append(int(number))
        return row(number)

    dataset = grain.MapDataset.range(ROWS).map(noted)
    settings = {"shuffle": False, "superbatch": 1, "steps_per_epoch": 1}
    _, position = read(data.from_grain(dataset, batch_size=48, **settings))
    source = data.from_grain(dataset, batch_size=24, **settings)
    assert source.example  # reads on from the beginning, as far as it reads ahead
    got.clear()
    rest, _ = read(source, position)
    assert rest == list(range(48, 72))
    assert min(got) == 48


def test_epochs_of_arrays_add_up_to_passes_each_in_its_own_order():
    source = data.Arrays(batch(np.arange(14)), 4, steps_per_epoch=4)
    seen, position = [], None
    while len(seen) < 36:
        more, position = read(source, position)
        seen += more
    passes = [seen[at : at + 12] for at in (0, 12, 24)]
    assert all(len(set(one)) == 12 for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    straight, _ = read(data.Arrays(batch(np.arange(14)), 4, steps_per_epoch=9))
    assert straight == seen[:36]
