"""Files of arrays: each example once per pass, in order for evaluation, resumed anywhere."""

import io

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from trainer import data


def numbers(n):
    """Examples whose label tells their number."""
    return {"inputs": np.arange(n, dtype=np.float32)[:, None] / 2, "labels": np.arange(n)}


@pytest.fixture
def files(tmp_path):
    """The same, in files."""

    def save(n):
        paths = {}
        for name, array in numbers(n).items():
            paths[name] = tmp_path / f"{name}.npy"
            np.save(paths[name], array)
        return paths

    return save


def labels_of(batches):
    return [batch["labels"].tolist() for batch in batches]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_a_pass_has_each_example_at_most_once_in_whole_batches(
    epoch_of, n, batch_size, superbatch, number
):
    if n < batch_size:
        return
    feed = data.MemoryMap(numbers(n), batch_size, superbatch=superbatch).training()
    assert feed.steps == n // batch_size
    position = {**feed.start, "place": np.array([number, 0], np.int32)}
    batches, after = epoch_of(feed, position)
    seen = np.concatenate(labels_of(batches))
    assert len(seen) == feed.steps * batch_size
    assert len(set(seen.tolist())) == len(seen)
    np.testing.assert_array_equal(after["place"], [number + 1, 0])
    for batch in batches:
        np.testing.assert_array_equal(batch["inputs"][:, 0] * 2, batch["labels"])


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5))
def test_evaluation_has_each_example_exactly_once_in_order(epoch_of, n, batch_size, superbatch):
    feed = data.MemoryMap(numbers(n), batch_size, superbatch=superbatch).evaluation()
    for _ in range(2):
        batches, _ = epoch_of(feed)
        seen = np.concatenate([batch["labels"][mask] for batch, mask in batches])
        np.testing.assert_array_equal(seen, np.arange(n))


@given(
    n=st.integers(4, 30),
    steps=st.integers(1, 12),
    superbatch=st.integers(1, 5),
    batches=st.integers(0, 10**6),
)
def test_reading_resumes_at_any_position(epoch_of, n, steps, superbatch, batches):
    def made(superbatch=superbatch):
        return data.MemoryMap(
            numbers(n), 3, superbatch=superbatch, steps_per_epoch=steps
        ).training()

    feed, whole = made(), n // 3
    first = {**feed.start, "place": np.array(divmod(batches, whole), np.int32)}
    one, between = epoch_of(feed, first)
    two, last = epoch_of(feed, between)
    chex.assert_trees_all_equal_shapes_and_dtypes(feed.start, between, last)
    np.testing.assert_array_equal(last["place"], divmod(batches + 2 * steps, whole))
    again, _ = epoch_of(made(), between)
    assert labels_of(again) == labels_of(two)
    finer, _ = epoch_of(made(superbatch=1), first)
    assert labels_of(finer) == labels_of(one)


def test_passes_and_seeds_have_their_own_orders(epoch_of, begun):
    feed = data.MemoryMap(numbers(40), 4).training()
    first, after = epoch_of(feed)
    again, _ = epoch_of(feed)
    second, _ = epoch_of(feed, after)
    other, _ = epoch_of(feed, state=begun(seed=1))
    assert labels_of(first) == labels_of(again)
    assert len({str(labels_of(batches)) for batches in (first, second, other)}) == 3


def test_files_are_mapped_and_read_as_the_arrays_in_them(files, epoch_of):
    source = data.MemoryMap(files(20), 4)
    assert isinstance(source.arrays["inputs"].base, np.memmap)
    assert source.size == 20
    chex.assert_shape(source.example["inputs"], (4, 1))
    held = data.MemoryMap(numbers(20), 4)
    for ours, theirs in (
        (source.training(), held.training()),
        (source.evaluation(), held.evaluation()),
    ):
        chex.assert_trees_all_equal(epoch_of(ours)[0], epoch_of(theirs)[0])


def test_a_name_may_hold_a_dict_of_files(files, epoch_of):
    paths = files(10)
    source = data.MemoryMap({"inputs": {"x": paths["inputs"], "n": str(paths["labels"])}}, 5)
    chex.assert_shape(source.example["inputs"]["x"], (5, 1))
    for batch in epoch_of(source.training())[0]:
        np.testing.assert_array_equal(batch["inputs"]["x"][:, 0] * 2, batch["inputs"]["n"])


@pytest.mark.parametrize(
    ("arrays", "settings", "said"),
    [
        ({}, {}, "dict of named arrays"),
        ({"inputs": np.zeros(3), "labels": np.zeros(4)}, {}, "equal length"),
        (
            {"inputs": np.zeros(3)},
            {"batch_size": 0},
            "batch_size must be a whole number of at least 1; got 0",
        ),
        (
            {"inputs": np.zeros(3)},
            {"superbatch": 0},
            "superbatch must be a whole number of at least 1; got 0",
        ),
        (
            {"inputs": np.zeros(3)},
            {"steps_per_epoch": 0},
            "steps_per_epoch must be a whole number of at least 1",
        ),
    ],
)
def test_bad_arrays_and_settings_are_errors(arrays, settings, said):
    with pytest.raises(ValueError, match=said):
        data.MemoryMap(arrays, **{"batch_size": 2, **settings})


def test_fewer_examples_than_a_batch_is_an_error_only_for_training(epoch_of):
    source = data.MemoryMap(numbers(3), 4)
    with pytest.raises(ValueError, match="3 examples and batch_size is 4"):
        source.training()
    assert len(epoch_of(source.evaluation())[0]) == 1


def test_an_evaluation_reads_a_whole_pass():
    with pytest.raises(ValueError, match="every example exactly once.*steps_per_epoch=2"):
        data.MemoryMap(numbers(9), 2, steps_per_epoch=2).evaluation()


def _note_of(raised):
    return " ".join(raised.value.__notes__)


def test_the_error_names_a_bad_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        data.MemoryMap({"inputs": tmp_path / "missing.npy"}, 2)
    assert "missing.npy to be a whole .npy file" in _note_of(raised)

    whole = io.BytesIO()
    np.save(whole, np.zeros((100, 5)))
    for name, content in {"cut": whole.getvalue()[:-8], "text": b"inputs, labels"}.items():
        file = tmp_path / f"{name}.npy"
        file.write_bytes(content)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            data.MemoryMap({"inputs": file}, 2)
        assert f"{name}.npy to be a whole .npy file" in _note_of(raised)

    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(ValueError, match=r"two\.npz holds several"):
        data.MemoryMap({"inputs": tmp_path / "two.npz"}, 2)


@pytest.fixture(scope="module")
def images():
    """Noise that is called digits, in memory."""
    random = np.random.default_rng(0)
    return {
        "inputs": random.random((50, 8, 8, 1), np.float32),
        "labels": random.integers(0, 10, 50).astype(np.int32),
    }


def phases_over(task, arrays, **settings):
    source = data.MemoryMap(arrays, 8, **settings)
    return trainer.training(task.step, source)


def test_a_split_in_files_is_measured_like_one_in_memory(task, images, start):
    measured = []
    for source in (data.MemoryMap(images, 8, superbatch=3), data.Arrays(images, 8)):
        phase = trainer.evaluation(task.measure, source)
        measured.append(phase.execute(start, None, donate=False)[2].read()[0])
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    assert measured[0]["val/accuracy"] == measured[1]["val/accuracy"]


def test_the_position_is_in_the_state(task, images, start):
    source = data.MemoryMap(images, 8, steps_per_epoch=4)  # a pass is 6 steps
    state, _ = trainer.fit(start, trainer.training(task.step, source), epochs=3)
    assert state.carry["position/train"]["place"].tolist() == [2, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda images: {name: array[:-1] for name, array in images.items()},
        lambda images: {**images, "labels": images["labels"].astype(np.int64)},
        lambda images: {**images, "inputs": images["inputs"][::-1]},
    ],
)
def test_a_run_does_not_resume_with_other_data(change, images, epoch_of):
    position = data.MemoryMap(images, 8).training().start
    epoch_of(data.MemoryMap(dict(images), 8).training(), position)
    feed = data.MemoryMap(change(images), 8).training()
    with pytest.raises(ValueError, match="began with other data.*resume with the original data"):
        epoch_of(feed, position)


def test_labels_are_checked_as_they_arrive(task, images, start):
    wrong = images["labels"].copy()
    wrong[20] = 10
    with pytest.raises(ValueError, match="between 0 and 9.*and 10"):
        trainer.fit(start, phases_over(task, {**images, "labels": wrong}), epochs=2)


def test_a_failure_to_read_ends_the_run(task, images, start):
    class Failing(np.ndarray):
        def __getitem__(self, places):
            if isinstance(places, np.ndarray) and places.size > 8:
                raise OSError("the disk is gone")
            return super().__getitem__(places)

    source = data.MemoryMap(images, 8)
    source.arrays["inputs"] = images["inputs"].view(Failing)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(start, trainer.training(task.step, source), epochs=1)


@pytest.mark.parametrize("steps", [4, 6])
def test_law_8_superbatches_of_one_size_compile_once(start, task, digits, steps):
    arrays = {name: np.asarray(array) for name, array in digits[0].arrays.items()}
    source = data.MemoryMap(arrays, 8, superbatch=4, steps_per_epoch=steps)
    phase = trainer.training(lambda *both: task.step(*both), source)
    trainer.fit(start, phase, epochs=2)
    assert len(phase._shared.compiled) == 1
