"""Checks of settings and parameters."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.argument_checks import require_fit, require_rate, require_size, require_sizes


@pytest.mark.parametrize("value", [1, 10, np.int64(3)])
def test_whole_numbers_from_1_on_are_sizes(value):
    require_size("mlp", "classes", value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_nothing_else_is_a_size(value):
    with pytest.raises(TypeError, match="classes must be a whole number"):
        require_size("mlp", "classes", value)


@pytest.mark.parametrize("values", [(), (1,), [3, 4]])
def test_sequences_of_sizes_are_accepted(values):
    require_sizes("mlp", "hidden", values)


@pytest.mark.parametrize("values", ["12", 12, {1, 2}, (1.5,)])
def test_nothing_else_is_a_sequence_of_sizes(values):
    with pytest.raises(TypeError, match="hidden"):
        require_sizes("mlp", "hidden", values)


@pytest.mark.parametrize("value", [0, 0.0, 0.999])
def test_rates_are_probabilities_below_1(value):
    require_rate("mlp", "dropout", value)


@pytest.mark.parametrize("value", [1, -1e-9, float("nan"), float("inf")])
def test_nothing_else_is_a_rate(value):
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1"):
        require_rate("mlp", "dropout", value)


def test_require_fit_lists_what_does_not_fit():
    expected = {"a": {"w": jnp.ones(2), "b": jnp.ones(2)}}
    require_fit("params", expected, expected, remedy="do")
    with pytest.raises(
        ValueError, match=r"params: .* a/b is missing, a/w must be \(2,\), got \(3,"
    ):
        require_fit("params", expected, {"a": {"w": jnp.ones(3)}}, remedy="do")
    with pytest.raises(ValueError, match=r"model_state: .* b is not expected; do this"):
        require_fit("model_state", {}, {"b": 1.0}, remedy="do this")


def test_require_fit_lists_no_more_than_six():
    many = {str(i): jnp.ones(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"0 is missing.*5 is missing, and 3 more; do$"):
        require_fit("params", many, {}, remedy="do")
