"""A mixture: proportions hold, no example is skipped or repeated, and a run resumes at the next."""

import chex
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from trainer import data
from trainer.data.iteration.draws import DrawPosition, draw_batch
from trainer.data.iteration.mixing_weights import UNIT, compute_shares, evaluate_weight

A, B, BATCH = 5, 13, 4


def numbers(count, first=0):
    return {"inputs": np.arange(first, first + count, dtype=np.int32)}


def make(batch_size=BATCH, **settings):
    """Return a mixture whose second source counts from 100."""
    sources = {
        "a": data.Arrays(numbers(A), batch_size),
        "b": data.MemoryMap(numbers(B, 100), batch_size),
    }
    settings = {"weights": {"a": 1, "b": 2}, "steps_per_epoch": 3, **settings}
    return data.mixture(sources, **settings)


@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    batch_size=st.integers(1, 7),
    steps=st.integers(1, 60),
)
def test_proportions_are_exact_to_a_few_examples_at_any_time(weights, batch_size, steps):
    count = len(weights)
    position = DrawPosition(0, ((0, 0),) * count, (0,) * count)
    sizes, shares = [3, 5, 8, 13][:count], compute_shares(weights, "weights")
    drawn = np.zeros(count, int)
    read = [[] for _ in weights]
    for step in range(steps):
        draws, position = draw_batch(position, sizes, shares, batch_size)
        for source, number, example in zip(*draws, strict=True):
            read[source].append(number * sizes[source] + example)
        drawn = np.bincount(draws.sources, minlength=count) + drawn
        expected = np.array(shares) / UNIT * batch_size * (step + 1)
        assert np.abs(drawn - expected).max() < max(count - 1, 1)
        assert sum(position.credits) == 0
    assert [one == list(range(len(one))) for one in read] == [True] * count  # none is skipped
    assert not drawn[np.array(weights) == 0].any()


def test_shares_and_weights_by_hand():
    assert compute_shares([0.25, 0.75, 0], "weights") == (UNIT // 4, 3 * UNIT // 4, 0)
    assert sum(compute_shares([1, 1, 1], "weights")) == UNIT
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    assert [evaluate_weight("a", schedule, step) for step in (0, 5, 20)] == [1.0, 0.5, 0.0]
    table = {0: 1.0, 10: 0.25}
    assert [evaluate_weight("a", table, step) for step in (0, 9, 10)] == [1.0, 1.0, 0.25]


def test_every_pass_of_each_source_visits_all_examples_in_its_own_order(epoch_of):
    feed, position, seen = make().training(), None, []
    for _ in range(20):
        batches, position = epoch_of(feed, position)
        seen += [batch["inputs"] for batch in batches]
    chex.assert_shape(seen, (BATCH,))
    seen = np.concatenate(seen)
    for values, size in ((seen[seen < 100], A), (seen[seen >= 100] - 100, B)):
        passes = values[: len(values) // size * size].reshape(-1, size)
        assert len(passes) > 5
        np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(size), (len(passes), 1)))
        assert (passes != passes[0]).any()
    assert (seen < 100).sum() == len(seen) // 3


def test_two_sources_of_one_size_have_their_own_orders(epoch_of):
    sources = {name: data.MemoryMap(numbers(8, first), 4) for name, first in (("a", 0), ("b", 100))}
    (one, *more), _ = epoch_of(data.mixture(sources, weights={"a": 1, "b": 1}).training())
    seen = np.concatenate([batch["inputs"] for batch in (one, *more)])
    assert sorted(seen[seen < 100]) == sorted(seen[seen >= 100] - 100)
    assert seen[seen < 100].tolist() != (seen[seen >= 100] - 100).tolist()


def test_weights_follow_a_schedule(epoch_of):
    weights = {"a": {0: 1, 2: 0, 4: 1}, "b": lambda step: 0 if step < 2 else 1}
    batches, after = epoch_of(make(weights=weights, steps_per_epoch=6).training())
    counts = [int((batch["inputs"] < 100).sum()) for batch in batches]
    assert counts == [4, 4, 0, 0, 2, 2]
    assert after["step"] == 6


@given(
    st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 3]), min_size=6, max_size=6),
)
def test_no_example_is_skipped_if_batch_size_and_weights_change(begun, epoch_of, sizes, weights):
    position, seen = None, []
    for size, weight in zip(sizes, weights, strict=False):
        feed = make(size, weights={"a": weight, "b": 2}).training()
        batches, position = epoch_of(feed, position)
        seen += [batch["inputs"] for batch in batches]
    seen = np.concatenate(seen)
    for values, size in ((seen[seen < 100], A), (seen[seen >= 100], B)):
        for first in range(0, len(values), size):
            assert len({*values[first : first + size]}) == len(values[first : first + size])


def step(state, batch):
    """The order matters to the parameters, bit by bit."""
    w = state.params["w"] * 0.5 + batch["inputs"].sum() + 0.1 * batch["inputs"][0]
    return state.replace(step=state.step + 1, params={**state.params, "w": w}), {"loss": w.sum()}


def test_law_5_a_run_resumes_at_every_epoch(state, tmp_path):
    weights = {"a": optax.linear_schedule(1.0, 0.2, 10), "b": 1}
    phase = trainer.training(step, make(weights=weights, steps_per_epoch=1))
    straight, _ = trainer.fit(state, phase, epochs=7)
    for stop in range(1, 7):
        saving = [hooks.save_checkpoints(tmp_path / str(stop), max_cost=None) for _ in range(2)]
        trainer.fit(state, phase, epochs=stop, hooks=saving[0])
        resumed, history = trainer.fit(state, phase, epochs=7, hooks=saving[1])
        assert len(history) == 7 - stop
        assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)


def test_a_run_does_not_resume_with_other_data(epoch_of):
    start = make().training().start
    other = data.mixture(
        {"a": data.Arrays(numbers(A, 1), 4), "b": data.MemoryMap(numbers(B, 100), 4)},
        weights={"a": 1, "b": 2},
    )
    with pytest.raises(ValueError, match="began with other data"):
        epoch_of(other.training(), start)


@pytest.mark.parametrize("names", ["ac", "abc", "b"])
def test_a_run_that_resumes_with_other_sources_lists_them(names, state, tmp_path):
    def train(state, names, epochs):
        sources = {name: data.MemoryMap(numbers(8), BATCH) for name in names}
        mixed = data.mixture(sources, weights=dict.fromkeys(names, 1), steps_per_epoch=1)
        saving = hooks.save_checkpoints(tmp_path, max_cost=None)
        return trainer.fit(state, trainer.training(step, mixed), epochs=epochs, hooks=saving)[0]

    trained = train(state, "ab", 1)
    said = f"saved with the sources a, b; got {', '.join(names)}: keep the sources"
    with pytest.raises(ValueError, match=f"does not fit this run:\n  .*train: {said}") as caught:
        train(state, names, 2)
    assert "/sources/" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"phase 'train' at state.carry\[.*\]: {said}"):
        train(trained, names, 2)


def test_a_mixture_has_a_length_and_can_be_iterated():
    source = make(steps_per_epoch=None)
    assert len(source) == (A + B) // BATCH == len(list(source))
    assert source.example["inputs"].tolist() == [100, 0, 101, 102]


def test_sources_that_cannot_be_mixed_are_errors():
    a, b = data.MemoryMap(numbers(4), 2), data.MemoryMap({"inputs": np.zeros((4, 3))}, 2)
    with pytest.raises(ValueError, match="mixture needs sources by name.*got"):
        data.mixture([a, a], weights={})
    with pytest.raises(TypeError, match="got Stream for 'b': mix within the function of a Stream"):
        data.mixture({"a": a, "b": data.Stream([numbers(4)])}, weights={"a": 1, "b": 1})
    with pytest.raises(
        ValueError, match=r"same arrays and size; from 'a' to 'b':\n  inputs: int32\[2\]"
    ):
        data.mixture({"a": a, "b": b}, weights={"a": 1, "b": 1})
    for weights, said in (
        ({"a": 1}, r"weights must be given for \['a', 'b'\]; got \['a'\]"),
        ({"a": 0, "b": 0}, "weights at step 0 of a, b must be finite, .* one above; got 0.0, 0.0"),
        ({"a": -1, "b": 2}, "none below 0, and one above; got -1.0, 2.0"),
        ({"a": float("nan"), "b": 2}, "must be finite"),
        ({"a": {3: 1}, "b": 2}, "the weight of 'a' at step 0 is missing: its table begins at 3"),
    ):
        with pytest.raises(ValueError, match=said):
            make(weights=weights)
    with pytest.raises(TypeError, match="the weight of 'a' at step 0 must be a number; got 'x'"):
        make(weights={"a": "x", "b": 1})
    with pytest.raises(
        TypeError, match="a step in the table of weights of 'a' must be a whole number"
    ):
        make(weights={"a": {"0": 1}, "b": 1})
    with pytest.raises(ValueError, match="visits some more often than others; evaluate each of"):
        trainer.evaluation(lambda state, batch: {}, make())


def test_a_bad_source_is_named_before_training(state):
    source = make()

    def check(state, batch):
        if batch["inputs"].max() >= 100:
            raise ValueError("too large")

    with pytest.raises(ValueError, match="too large") as raised:
        source.training().verify(state, check)
    assert raised.value.__notes__ == ["in the source 'b' of a mixture"]


def test_a_mixture_is_split_over_a_mesh_with_the_same_examples(begun):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    source = make()
    feed = source.training()
    alone, _ = next(iter(feed.pieces(begun(), None, feed.start)))
    spread = trainer.spread(begun(), mesh)
    split, _ = next(iter(feed.pieces(spread, None, feed.start)))
    np.testing.assert_array_equal(alone["inputs"], split["inputs"])
    assert split["inputs"].sharding.shard_shape(split["inputs"].shape) == (3, BATCH // 2)
