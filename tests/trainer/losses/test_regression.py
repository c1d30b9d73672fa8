"""The regression loss, against hand-worked numbers."""

import jax.numpy as jnp
import pytest

from trainer import losses


def test_regression_by_hand():
    outputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    values = losses.regression(outputs, {"targets": jnp.array([[1.0, 4.0], [0.0, 0.0]])})
    assert values["loss"].tolist() == [2.0, 0.5]
    assert values["absolute_error"].tolist() == [1.0, 0.5]
    assert losses.regression.finalize({"loss": 9.0}) == {"root_mean_squared_error": 3.0}


def test_an_axis_of_size_one_is_removed():
    values = losses.regression(jnp.array([[1.0], [3.0]]), {"targets": jnp.array([1.0, 1.0])})
    assert values["loss"].tolist() == [0.0, 4.0]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (jnp.ones((2, 3)), r"shape \[2\] from the network; got float32\[2, 3\]"),
        (jnp.ones(2, int), r"got int32\[2\]"),
        ({}, "got dict"),
    ],
)
def test_outputs_of_another_shape_are_an_error(outputs, said):
    with pytest.raises(ValueError, match=said):
        losses.regression(outputs, {"targets": jnp.ones(2)})


def test_every_task_has_its_loss():
    made = {"dpo", "orpo", "total"}  # by a call with settings
    assert set(losses.by_task) == set(losses.__all__) - {"Loss", "by_task"} - made
    for task, loss in losses.by_task.items():
        assert loss is getattr(losses, task)
