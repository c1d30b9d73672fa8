"""Data sets of `tf.data`: by their protocol, and where TensorFlow is installed, real ones."""

import logging

import numpy as np
import pytest

from trainer import data

EXAMPLES = 14


class RangeDataset:
    """Pairs of arrays, with the methods of a `tf.data.Dataset` that are read."""

    def __init__(self, numbers, *inner):
        self.numbers, self.inner = numbers, inner

    def __len__(self):
        return len(self.numbers)

    def _inputs(self):
        return list(self.inner)

    def batch(self, size):
        cuts = range(0, len(self.numbers), size)
        return RangeDataset([np.stack(self.numbers[cut : cut + size]) for cut in cuts], self)

    def skip(self, count):
        return RangeDataset(self.numbers[count:], self)

    def as_numpy_iterator(self):
        return ((np.float32(number), number) for number in self.numbers)


class ShuffleDataset(RangeDataset):
    pass


def stub(seed=0, number=0):
    return RangeDataset(list(np.random.default_rng((seed, number)).permutation(EXAMPLES)))


def real(seed=0, number=0):
    tensorflow = pytest.importorskip("tensorflow")
    whole = tensorflow.data.Dataset.range(EXAMPLES).map(lambda n: (float(n), n))
    return whole.shuffle(5, seed=seed + number)


def test_what_is_no_data_set_is_an_error():
    for wrong in ([1], lambda seed, epoch: [1]):
        with pytest.raises(
            TypeError, match=r"takes a tf\.data\.Dataset, or a function.*got a list"
        ):
            data.from_tf(wrong, batch_size=2).example  # noqa: B018


@pytest.mark.parametrize("make", [stub, real])
def test_law_5_a_run_resumes_at_the_next_batch(make, resumed_labels):
    together, apart = resumed_labels(lambda: data.from_tf(make, batch_size=3, steps_per_epoch=3))
    assert together == apart
    assert sorted(together[:12]) == sorted(set(together[:12]))


def test_batches_are_named_counted_and_complete():
    source = data.from_tf(stub().batch(4))
    assert len(source) == 4
    assert [len(batch["labels"]) for batch in source] == [4, 4, 4, 2]
    assert source.example["inputs"].dtype == np.float32


@pytest.mark.parametrize("shuffles", [False, True])
def test_a_shuffle_of_its_own_is_said_before_training(shuffles, caplog):
    inner = ShuffleDataset([1, 2]) if shuffles else RangeDataset([1, 2])
    with caplog.at_level(logging.INFO, "entracte"):
        data.from_tf(inner.batch(2))
    assert any("sees another order" in message for message in caplog.messages) == shuffles
