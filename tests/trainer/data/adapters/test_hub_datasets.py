"""Data sets of Hugging Face, where `datasets` is installed."""

import logging

import numpy as np
import pytest

from trainer import data

EXAMPLES = 14
COLUMNS = {"inputs": "x", "labels": "y"}


@pytest.fixture(scope="module")
def rows():
    datasets = pytest.importorskip("datasets")
    x = np.arange(2 * EXAMPLES, dtype=np.float32).reshape(-1, 2).tolist()
    return datasets.Dataset.from_dict(
        {"x": x, "y": list(range(EXAMPLES)), "name": ["a"] * EXAMPLES}
    )


def streamed(rows, shuffled):
    made = rows.to_iterable_dataset(num_shards=3)
    return made.shuffle(seed=1, buffer_size=4) if shuffled else made


def test_what_is_no_data_set_is_an_error():
    with pytest.raises(TypeError, match=r"takes one split; got a dict of val: dataset\['val'\]"):
        data.from_datasets({"val": []}, batch_size=2)
    with pytest.raises(TypeError, match="takes a Dataset or an IterableDataset.*got a list"):
        data.from_datasets([1], batch_size=2)


def test_columns_are_named(rows, epoch_of):
    source = data.from_datasets(rows, {"inputs": {"x": "x"}, "labels": "y"}, batch_size=4)
    batches, _ = epoch_of(source.evaluation())
    labels = np.concatenate([batch["labels"][mask] for batch, mask in batches])
    np.testing.assert_array_equal(labels, np.arange(EXAMPLES))
    np.testing.assert_array_equal(batches[0][0]["inputs"]["x"][:, 0], [0, 2, 4, 6])
    with pytest.raises(ValueError, match="needs a column 'z'.*there is: x, y, name"):
        data.from_datasets(rows, {"inputs": "z"}, batch_size=2)
    with pytest.raises(TypeError, match=r"\['inputs'\] must hold numbers"):
        data.from_datasets(rows, {"inputs": "name"}, batch_size=2)


def test_values_of_several_shapes_are_an_error(rows):
    ragged = rows.map(lambda row: {"x": row["x"][: 1 + row["y"] % 2]})
    with pytest.raises(ValueError, match=r"one shape in column 'x'; got \[\(1,\), \(2,\)\]: pad"):
        data.from_datasets(ragged, COLUMNS, batch_size=2)


@pytest.mark.parametrize("kind", ["rows", "streamed", "shuffled"])
def test_law_5_a_run_resumes_at_the_next_example(rows, resumed_labels, kind, caplog):
    def make():
        dataset = rows if kind == "rows" else streamed(rows, kind == "shuffled")
        return data.from_datasets(dataset, COLUMNS, batch_size=3, steps_per_epoch=3)

    with caplog.at_level(logging.INFO, "entracte"):
        together, apart = resumed_labels(make)
    assert together == apart
    assert sorted(together[:12]) == sorted(set(together[:12]))
    assert any("cannot return to a place" in m for m in caplog.messages) == (kind == "shuffled")
