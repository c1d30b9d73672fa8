"""Several sources in one step: each is read completely, in its own order, with its own position."""

from __future__ import annotations

from itertools import chain

import jax
import numpy as np
import pytest

import hooks
import trainer
from trainer import data

A, B, STEPS = 12, 5, 4


def numbers(n):
    return {"inputs": np.arange(n, dtype=np.float32)}


def streamed(n, size):
    def batches(seed, number):
        order = np.random.default_rng((seed, number)).permutation(n).astype(np.float32)
        for place in range(0, n, size):
            yield {"inputs": order[place : place + size]}

    return data.Stream(batches)


ZIPS = {
    "on the device": lambda: data.zip_sources(
        {"a": data.Arrays(numbers(A), 3), "b": data.Arrays(numbers(B), 2)}
    ),
    "from the host": lambda: data.zip_sources(
        {"a": data.MemoryMap(numbers(A), 3), "b": streamed(B, 2)}
    ),
    "of both": lambda: data.zip_sources(
        {"b": streamed(B, 2), "a": data.Arrays(numbers(A), 3)}, steps_per_epoch=STEPS
    ),
}


def step(state, batch):
    """Order matters to the parameters, and what was seen is reported, bit by bit."""
    a, b = batch["a"]["inputs"], batch["b"]["inputs"]
    params = {**state.params, "w": state.params["w"] * 0.5 + a[0] + 0.1 * b[0]}
    after = state.replace(step=state.step + 1, params=params)
    return after, {"a": (2.0**a).sum(), "b": (2.0**b).sum()}


@pytest.fixture(scope="module")
def phases():
    """One for all tests, since a phase keeps what it compiled."""
    return {name: trainer.training(step, make()) for name, make in ZIPS.items()}


def bits(values):
    """The examples that were seen, of sums of powers of two."""
    return [[n for n in range(16) if int(value) >> n & 1] for value in values]


def run(state, phase, epochs, *more):
    seen = {"a": [], "b": []}

    def note(state, metrics):
        for name in seen:
            seen[name] += bits(metrics.steps[f"train/{name}"])
        return state

    after, _ = trainer.fit(state, phase, epochs=epochs, hooks=[hooks.observe(note), *more])
    return after, seen


@pytest.mark.parametrize("name", ZIPS)
def test_each_source_is_read_completely_pass_after_pass(state, phases, name):
    after, seen = run(state, phases[name], 3)
    assert len(seen["a"]) == len(seen["b"]) == 12
    first, second = ([*chain(*seen["a"][at : at + 4])] for at in (0, 4))
    assert sorted(first) == sorted(second) == list(range(A))
    assert first != second
    for at in range(0, 12, 2):  # two whole batches of two, and one example over
        assert len(set(chain(*seen["b"][at : at + 2]))) == 4
    places = {
        name: place["place"].tolist() for name, place in after.carry["position/train"].items()
    }
    assert places["a"] in ([3, 0], [2, 4])
    assert places["b"] in ([6, 0], [5, 2])


@pytest.mark.parametrize("name", ZIPS)
def test_law_5_a_run_resumes_at_the_next_example_of_each_source(state, phases, name, tmp_path):
    straight, seen = run(state, phases[name], 3)
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    run(state, phases[name], 1, saving)
    resumed, rest = run(state, phases[name], 3, hooks.save_checkpoints(tmp_path, max_cost=None))
    assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)
    assert rest["a"] == seen["a"][4:]
    assert rest["b"] == seen["b"][4:]
    assert trainer.restore(tmp_path, state).epoch == 3


def test_two_sources_of_one_size_have_their_own_orders(state):
    for make in (data.Arrays, data.MemoryMap):
        source = data.zip_sources({name: make(numbers(A), 3) for name in ("a", "b")})
        feed = source.training()
        (piece, _), *_ = feed.pieces(state, None, feed.start)
        rows = jax.jit(feed.rows)(piece, jax.random.key(0))
        batch = jax.jit(jax.vmap(feed.batch, (None, 0)))(piece, rows)
        a, b = (np.asarray(batch[name]["inputs"]).ravel().tolist() for name in ("a", "b"))
        assert sorted(a) == sorted(b)
        assert a != b


def test_resuming_with_another_batch_size_skips_nothing(state, caplog):
    def seen(size, position):
        source = data.zip_sources(
            {"a": data.Arrays(numbers(A), 3), "b": data.MemoryMap(numbers(12), size)}
        )
        feed = source.training()
        pieces = list(feed.pieces(state, None, position or feed.start))
        return [piece["b"]["inputs"] for piece, _ in pieces], pieces[-1][1]

    first, position = seen(1, None)
    second, _ = seen(2, position)
    both = np.concatenate([np.ravel(piece) for piece in [*first, *second]])
    assert sorted(both.tolist()) == list(range(12))
    assert "had batches of 1 examples, and resumes with 2" in caplog.text


def test_zipped_sources_have_a_length_and_can_be_iterated():
    source = ZIPS["on the device"]()
    batches = list(source)
    assert len(source) == len(batches) == 4
    assert [batch["a"]["inputs"].tolist() for batch in batches[:2]] == [[0, 1, 2], [3, 4, 5]]
    assert [batch["b"]["inputs"].tolist() for batch in batches] == [[0, 1], [2, 3]] * 2


def test_sources_that_cannot_be_zipped_are_errors(state):
    few, many = data.Arrays(numbers(3), 4), data.Arrays(numbers(9), 4)
    with pytest.raises(ValueError, match="zip_sources needs sources by name.*got"):
        data.zip_sources([many, few])
    with pytest.raises(TypeError, match="got list for 'b'"):
        data.zip_sources({"a": many, "b": [numbers(2)]})
    with pytest.raises(ValueError, match="'a', determines the steps.*pass steps_per_epoch"):
        data.zip_sources({"a": streamed(4, 2), "b": many})
    with pytest.raises(ValueError, match="at least one whole batch") as raised:
        trainer.training(step, data.zip_sources({"a": many, "b": few}))
    assert raised.value.__notes__ == ["in the source 'b' of a zip"]
    with pytest.raises(ValueError, match=r"evaluate each of \['a', 'b'\] in its own phase"):
        trainer.evaluation(lambda state, batch: {}, data.zip_sources({"a": many, "b": many}))
    with pytest.raises(ValueError, match="each member would need .* its own"):
        trainer.population(trainer.training(step, data.zip_sources({"a": many, "b": many})), 2)


@pytest.mark.parametrize("kind", ZIPS)
def test_on_several_processes_the_data_of_the_host_are_read_in_their_turn(kind, monkeypatch):
    assert ZIPS[kind]().training().in_turn is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert (ZIPS[kind]().training().in_turn is None) is (kind == "on the device")
