"""Windows of tokens: each token is a target once, and no run resumes with another file."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Packs this many tokens that tell their places, and gives the file."""
    folder = tmp_path_factory.mktemp("tokens")

    def pack(count):
        file = folder / f"{count}.tokens"
        if not file.exists():
            data.pack_tokens([range(count)], file, vocabulary=max(count, 300))
        return file

    return pack


def check_labels(batch):
    np.testing.assert_array_equal(batch["labels"], batch["inputs"] + 1)


@given(
    count=st.integers(2, 40),
    length=st.integers(1, 12),
    stride=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    superbatch=st.integers(1, 3),
)
def test_in_evaluation_every_token_but_the_first_is_a_target_once(
    packed, epoch_of, count, length, stride, batch_size, superbatch
):
    length, stride = min(length, count - 1), min(stride, length, count - 1)
    source = data.Tokens(
        packed(count), batch_size=batch_size, length=length, stride=stride, superbatch=superbatch
    )
    targets, windows = [], 0
    for batch, mask in epoch_of(source.evaluation())[0]:
        check_labels(batch)
        chex.assert_shape(batch["mask"], (batch_size, length))
        targets += batch["labels"][mask][batch["mask"][mask]].tolist()
        windows += int(mask.sum())
    assert targets == list(range(1, count))
    assert windows == source.size


def test_windows_by_hand(packed, epoch_of):
    source = data.Tokens(packed(8), batch_size=1, length=3)
    batches = [batch for batch, _ in epoch_of(source.evaluation())[0]]
    assert [batch["inputs"][0].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [4, 5, 6]]
    masks = [batch["mask"][0].tolist() for batch in batches]
    assert masks == [[True] * 3, [True] * 3, [False, False, True]]


def test_in_training_every_window_is_seen_once_a_pass(packed, epoch_of):
    feed = data.Tokens(packed(30), batch_size=2, length=4, stride=3).training()
    batches, after = epoch_of(feed)
    for batch in batches:
        chex.assert_type([batch["inputs"], batch["labels"]], np.int32)
        assert sorted(batch) == ["inputs", "labels"]
        check_labels(batch)
    first = [window[0] for batch in batches for window in batch["inputs"].tolist()]
    windows = [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]
    assert sorted(first) == windows
    assert first != windows
    again, _ = epoch_of(feed, after)
    assert [batch["inputs"][0, 0] for batch in again] != first[::2]


def test_parts_of_a_file_share_no_token(packed, epoch_of):
    seen = []
    for part in ((0, 0.75), (0.75, 1)):
        source = data.Tokens(packed(40), batch_size=2, length=4, part=part)
        for batch, _ in epoch_of(source.evaluation())[0]:
            seen.append({*batch["inputs"].ravel().tolist(), *batch["labels"].ravel().tolist()})
    assert set.union(*seen[:4]) == set(range(30))
    assert set.union(*seen[4:]) == set(range(30, 40))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 10}, "less than the 10 tokens .* got 10"),
        ({"length": 5, "part": (0, 0.5)}, r"less than the 5 tokens of part \(0, 0.5\)"),
        ({"length": 0}, "length must be at least 1"),
        ({"stride": 4}, "stride from 1 to length.* got length 3 and stride 4"),
        ({"stride": 0}, "stride from 1 to length"),
        ({"part": (0.5, 0.5)}, "part must be .* got"),
        ({"part": (0, 2)}, "part must be .* got"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"superbatch": 0}, "superbatch must be a whole number of at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number of at least 1"),
    ],
)
def test_settings_out_of_range_are_errors(packed, settings, said):
    with pytest.raises(ValueError, match=said):
        data.Tokens(packed(10), **{"batch_size": 2, "length": 3, **settings})


def test_fewer_windows_than_a_batch_is_an_error_only_for_training(packed):
    source = data.Tokens(packed(10), batch_size=4, length=3)
    source.evaluation()
    with pytest.raises(ValueError, match="3 examples and batch_size is 4"):
        source.training()


VOCABULARY = 11

BIGRAMS = SimpleNamespace(
    init=lambda key, x: ({"table": jax.random.normal(key, (VOCABULARY, VOCABULARY))}, {}),
    apply=lambda params, model_state, x, *, key, train: (params["table"][x], model_state),
)
"""A model of language whose logits are a row of a table."""


@pytest.fixture(scope="module")
def bigrams():
    return trainer.supervised(BIGRAMS, losses.language_modeling, optax.sgd(0.1))


@pytest.fixture
def text(tmp_path):
    """Writes a text of some seed in the place where the run reads."""
    file = tmp_path / "text.tokens"

    def write(seed):
        tokens = np.random.default_rng(seed).integers(0, VOCABULARY, 60)
        data.pack_tokens([tokens], file, vocabulary=VOCABULARY)
        return file

    return write


def run(task, file, directory, epochs, seed=0):
    source = data.Tokens(file, batch_size=4, length=5, superbatch=2, steps_per_epoch=2)
    chain = hooks.save_checkpoints(directory, keep=9, max_cost=None) if directory else ()
    state = task.init(jax.random.key(seed), source.example)
    phase = trainer.training(task.step, source)
    return trainer.fit(state, phase, epochs=epochs, hooks=chain)[0]


def test_law_5_a_run_resumes_at_the_next_window(bigrams, text, tmp_path):
    file = text(0)
    straight = run(bigrams, file, tmp_path / "straight", epochs=4)  # a pass is 3 steps
    assert straight.carry["position/train"]["place"].tolist() == [2, 2]
    for stop in range(1, 4):
        commit = Path("checkpoints", str(stop))
        shutil.copytree(tmp_path / "straight" / commit, tmp_path / str(stop) / commit)
        resumed = run(bigrams, file, tmp_path / str(stop), epochs=4)
        assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)


def test_a_run_does_not_resume_with_another_file(bigrams, text, tmp_path):
    before = run(bigrams, text(0), tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="began with other data.*resume with the original data"):
        run(bigrams, text(1), tmp_path / "run", epochs=2)
    after = run(bigrams, text(0), tmp_path / "run", epochs=1)  # nothing was lost by trying
    assert trainer.fingerprint(before) == trainer.fingerprint(after)


def test_a_run_does_not_resume_with_another_part(packed, epoch_of):
    def feed(part):
        return data.Tokens(packed(40), batch_size=2, length=3, part=part).training()

    epoch_of(feed((0.0, 0.5)), feed((0, 0.5)).start)
    with pytest.raises(ValueError, match="began with other data"):
        epoch_of(feed((0.5, 1)), feed((0, 0.5)).start)
    other = data.Tokens(packed(40), batch_size=2, length=3, stride=2, part=(0, 0.5)).training()
    with pytest.raises(ValueError, match="began with other data"):
        epoch_of(other, feed((0, 0.5)).start)


def test_perplexity_is_exact_whatever_the_windows(bigrams, text):
    file = text(0)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 60)
    source = data.Tokens(file, batch_size=3, length=7)
    state = bigrams.init(jax.random.key(1), source.example)
    logits = np.asarray(state.params["table"], np.float64)[tokens[:-1]]
    entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(59), tokens[1:]]
    for length, stride in ((7, None), (7, 3), (59, None)):
        source = data.Tokens(file, batch_size=3, length=length, stride=stride)
        phase = trainer.evaluation(bigrams.measure, source)
        _, _, measured = phase.execute(state, None, donate=False)
        assert measured.read()[0]["val/loss"] == pytest.approx(entropy.mean(), rel=1e-5)
