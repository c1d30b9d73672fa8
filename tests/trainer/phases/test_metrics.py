"""Metrics: packed exactly, reduced as asked, frozen."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer import Metrics, Phase
from trainer.phases.packed import PackedLayout, pack
from trainer.phases.reductions import reduce_pieces

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KINDS = [np.float32, np.int32, np.uint32, np.bool_, np.int8, np.uint8, np.float16]


@given(
    st.lists(
        st.sampled_from(KINDS).flatmap(
            lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=1, max_side=5))
        ),
        max_size=4,
    )
)
def test_packed_numbers_are_unpacked_bit_for_bit(leaves):
    tree = dict(enumerate(leaves))
    unpacked = PackedLayout.from_shapes(tree).unpack(np.asarray(pack(tree)))
    for number, leaf in tree.items():
        np.testing.assert_array_equal(unpacked[number].astype(leaf.dtype), leaf)


def test_integers_beyond_float32_survive():
    tree = {"tokens": jnp.int32(2**24 + 1), "loss": jnp.float32(0.1)}
    unpacked = PackedLayout.from_shapes(tree).unpack(np.asarray(pack(tree)))
    assert int(unpacked["tokens"]) == 2**24 + 1
    assert unpacked["loss"] == np.float32(0.1)


def test_bfloat16_is_carried_exactly():
    tree = {"loss": jnp.bfloat16(1.25)}
    assert PackedLayout.from_shapes(tree).unpack(np.asarray(pack(tree)))["loss"] == 1.25


def test_many_scalars_are_packed_by_few_kernels_bit_for_bit():
    numbers = np.random.default_rng(0).integers(0, 2**32, 150, np.uint32)  # nan of all kinds too
    tree = dict(enumerate(numbers.view(np.float32)))
    unpacked = PackedLayout.from_shapes(tree).unpack(np.asarray(jax.jit(pack)(tree)))
    np.testing.assert_array_equal(np.array(list(unpacked.values())).view(np.uint32), numbers)

    def measured(x):
        return pack({number: x * number for number in range(150)})

    compiled = jax.jit(measured).lower(jnp.float32(2)).compile().as_text()
    assert compiled.count(" fusion(") < 5  # a kernel per scalar took 25 ms each to compile


def test_packing_takes_few_operations_a_metric():
    tree = {number: jnp.float32(number) for number in range(2_000)}
    operations = len(jax.make_jaxpr(pack)(tree).eqns)
    assert operations <= 5 * 2_000  # a bitcast, two reshapes, a broadcast and a select


def test_a_trace_is_reduced_as_asked():
    pieces = [{name: np.array([1.0, 4.0, 1.0]) for name in ("a", "b", "c", "d")}]
    values, traces = reduce_pieces(pieces, {"b": "sum", "c": "last", "d": "max"}, "train")
    assert values == {"train/a": 2.0, "train/b": 6.0, "train/c": 1.0, "train/d": 4.0}
    chex.assert_shape(list(traces.values()), (3,))


def test_pieces_join_before_they_are_reduced():
    pieces = [{"loss": np.array([1.0, 2.0])}, {"loss": np.array([6.0])}]
    values, traces = reduce_pieces(pieces, {}, "train")
    assert values == {"train/loss": 3.0}
    np.testing.assert_array_equal(traces["train/loss"], [1, 2, 6])


def test_a_pair_is_divided_once():
    pieces = [
        {"loss": (np.array([3.0, 1.0]), np.array([2, 1]))},
        {"loss": (np.array(8.0), np.array(1))},
    ]
    assert reduce_pieces(pieces, {}, "val") == ({"val/loss": 3.0}, {})


def test_the_mean_without_weights_is_nan():
    values, _ = reduce_pieces([{"loss": (np.array(0.0), np.array(0))}], {}, "val")
    assert math.isnan(values["val/loss"])


def test_metrics_are_a_frozen_mapping():
    metrics = Metrics({"train/loss": 1.0}, epochs=3)
    assert dict(metrics) == {"train/loss": 1.0}
    assert "train/loss" in metrics
    assert "val/loss" not in metrics
    with pytest.raises(AttributeError, match="frozen"):
        metrics.steps = {}
    with pytest.raises(KeyError, match="train/loss"):
        metrics["val/loss"]


def test_scores_make_new_metrics():
    metrics = Metrics({"a": 1.0}, steps={"a": np.zeros(2)}, output="kept", epochs=3)
    more = metrics.with_scores({"b": 2.0})
    assert dict(metrics) == {"a": 1.0}
    assert (dict(more), more.output, more.epochs) == ({"a": 1.0, "b": 2.0}, "kept", 3)
    assert more.steps == metrics.steps


@pytest.mark.parametrize(
    ("metrics", "reduce", "said"),
    [
        (jnp.zeros(3), {}, "must report a dict"),
        ({"image": jnp.zeros((2, 2))}, {}, r"scalar \(\) or a trace \[steps\]; got shape \[2, 2\]"),
        ({"loss": jnp.zeros(3)}, {"tokens": "sum"}, "does not report .there is: loss"),
        ({"loss": jnp.zeros(3)}, {"loss": "median"}, "mean, sum, first, last, max"),
    ],
)
def test_metrics_that_cannot_be_reduced_are_refused(state, metrics, reduce, said):
    phase = Phase("train", lambda state, data: (state, None, metrics), reduce=reduce)
    with pytest.raises((TypeError, ValueError), match=said):
        phase.list_metric_names(state)


def test_one_transfer_reads_all(state):
    def run(state, data):
        return state, None, {f"metric_{n}": jnp.float32(n) for n in range(10)}

    _, _, measured = Phase("train", run).execute(state, None, donate=False)
    assert [packed.shape for _, packed in measured.packed] == [(11,)]  # with the step
    values, _, step = measured.read()
    assert values == {f"train/metric_{n}": float(n) for n in range(10)}
    assert step == 0
    assert all(isinstance(leaf, jax.Array) for _, leaf in measured.packed)


def test_a_sum_of_64_bits_is_packed_and_unpacked_bit_for_bit():
    """XLA on CPU crashes where it fuses such a sum with its bitcast (jax 0.10.2)."""
    with jax.enable_x64(True):
        numbers = {"sum": jnp.full(12345, 1 / 3).sum(), "count": jnp.int64(-(2**40) - 1)}
        packed = jax.jit(lambda w, n: pack({"sum": jnp.abs(w).sum(), "count": n}))(
            jnp.full(12345, 1 / 3), numbers["count"]
        )
        found = PackedLayout.from_shapes(numbers).unpack(np.asarray(packed))
    assert found["sum"].dtype == np.float64
    assert float(found["sum"]) == pytest.approx(4115, rel=1e-12)
    assert int(found["count"]) == -(2**40) - 1


def test_late_values_are_read_once_and_only_when_needed():
    asked = []

    def read():
        asked.append(True)
        return {"time/a": 2.0, "time/b": 3.0}

    late = Metrics({"loss": 0.5, "time/a": 0.0, "time/b": 0.0}, epochs=3).with_late(
        ["time/a", "time/b"], read
    )
    derived = late.with_scores({"time/b": 9.0, "score": 1.0}).without(["loss"])
    assert late["loss"] == 0.5
    assert "time/a" in late
    assert [*derived] == ["time/a", "time/b", "score"]
    assert len(derived) == derived.epochs == 3
    assert derived["time/b"] == 9.0
    assert "None" in repr(derived)
    assert not asked
    assert (late["time/a"], late["time/b"], dict(late)["time/a"]) == (2.0, 3.0, 2.0)
    assert asked == [True]
    assert derived.as_dict() == {"time/a": 2.0, "time/b": 9.0, "score": 1.0}
    with pytest.raises(KeyError, match="no metric 'time/c'"):
        late["time/c"]
