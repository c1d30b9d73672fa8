"""Summaries: every leaf, and the totals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import trainer


def test_every_leaf_is_counted():
    params = {"a": [jnp.ones((2, 3)), jnp.ones((), jnp.bfloat16)], "b": np.zeros(4, np.int8)}
    summary = trainer.summary(params)
    found = [(row.path, row.shape, row.dtype, row.count, row.bytes) for row in summary.rows]
    assert found == [
        ("a/0", (2, 3), "float32", 6, 24),
        ("a/1", (), "bfloat16", 1, 2),
        ("b", (4,), "int8", 4, 4),
    ]
    assert (summary.count, summary.bytes) == (11, 30)


def test_the_text_is_a_table_with_totals():
    assert str(trainer.summary({"kernel": jnp.ones((1000, 2))})).splitlines() == [
        "path        shape      dtype    count  bytes",
        "kernel      [1000, 2]  float32  2,000  8,000",
        "parameters                      2,000  8,000",
    ]


def test_the_other_parts_of_a_state_are_summed(start):
    summary = trainer.summary(start)
    assert [row.path for row in summary.rows] == ["b", "w"]
    assert summary.count == 650
    (opt_state,) = summary.others  # Adam: two moments and a count
    assert (opt_state.path, opt_state.shape, opt_state.dtype) == (
        "opt_state",
        None,
        "float32, int32",
    )
    assert (opt_state.count, opt_state.bytes) == (2 * 650 + 1, (2 * 650 + 1) * 4)
    assert summary.bytes == (3 * 650 + 1) * 4
    assert str(summary).splitlines()[-1].split() == ["state", "7,804"]


def test_shapes_are_enough(task, start, digits):
    shapes = jax.eval_shape(task.init, jax.random.key(0), digits[0].example)
    assert trainer.summary(shapes) == trainer.summary(start)


def test_no_parameters_have_an_empty_summary():
    assert trainer.summary({}).count == 0
    assert str(trainer.summary({})).splitlines()[-1].split() == ["parameters", "0", "0"]
