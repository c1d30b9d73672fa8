"""A policy and a value in one network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.actor_critic import orthogonal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
OBSERVATIONS = jax.random.normal(KEY, (5, 4))


def _applied(network, inputs):
    params, model_state = jax.jit(network.init)(KEY, inputs)
    assert model_state == {}
    outputs, _ = network.apply(params, model_state, inputs, key=None, train=True)
    return params, outputs


def _layers(params, x, names):
    for name in names:
        layer = params["torso"]["hidden"][name]
        x = np.tanh(x @ np.array(layer["kernel"]) + np.array(layer["bias"]))
    return x @ np.array(params["head"]["kernel"]) + np.array(params["head"]["bias"])


def test_policy_and_value_are_two_stacks_of_layers():
    params, outputs = _applied(models.actor_critic(actions=3, hidden=(8, 6)), OBSERVATIONS)
    assert sorted(params) == ["policy", "value"]
    assert sorted(outputs) == ["logits", "value"]
    x = np.array(OBSERVATIONS)
    for name, wanted in (
        ("logits", _layers(params["policy"], x, "01")),
        ("value", _layers(params["value"], x, "01")[:, 0]),
    ):
        assert outputs[name].dtype == jnp.float32
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-4, atol=1e-6)


def test_shared_layers_are_trained_by_both():
    network = models.actor_critic(actions=3, hidden=(8, 6), shared=True)
    params, outputs = _applied(network, OBSERVATIONS)
    assert jax.tree.map(jnp.shape, params["policy"]) == {"head": {"bias": (3,), "kernel": (6, 3)}}
    x = np.array(OBSERVATIONS)
    for name in "01":
        layer = params["torso"]["hidden"][name]
        x = np.tanh(x @ np.array(layer["kernel"]) + np.array(layer["bias"]))
    np.testing.assert_allclose(
        outputs["logits"], x @ params["policy"]["head"]["kernel"], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        outputs["value"], (x @ params["value"]["head"]["kernel"])[:, 0], rtol=1e-4, atol=1e-6
    )


def test_a_continuous_policy_has_a_mean_and_a_deviation_that_no_observation_changes():
    network = models.actor_critic(actions=2, hidden=(), continuous=True)
    params, outputs = _applied(network, OBSERVATIONS)
    assert sorted(outputs) == ["log_std", "mean", "value"]
    assert outputs["mean"].shape == outputs["log_std"].shape == (5, 2)
    np.testing.assert_array_equal(outputs["log_std"], np.zeros((5, 2)))
    moved = params | {"log_std": jnp.array([0.5, -1.0])}
    outputs, _ = network.apply(moved, {}, OBSERVATIONS, key=None, train=False)
    np.testing.assert_array_equal(outputs["log_std"], np.tile([0.5, -1.0], (5, 1)))


def test_initial_kernels_are_orthogonal_with_the_scale_of_their_layer():
    params, outputs = _applied(models.actor_critic(actions=3, hidden=(8, 6)), OBSERVATIONS)
    for branch, gain in (("policy", 0.01), ("value", 1.0)):
        first, second = (params[branch]["torso"]["hidden"][n]["kernel"] for n in "01")
        head = params[branch]["head"]["kernel"]
        for gram, scale in (
            (first @ first.T, np.sqrt(2)),
            (second.T @ second, np.sqrt(2)),
            (head.T @ head, gain),
        ):
            wanted = scale**2 * np.eye(len(gram))
            np.testing.assert_allclose(gram, wanted, rtol=1e-4, atol=1e-5 * scale**2)
        assert not np.any(params[branch]["head"]["bias"])
    np.testing.assert_allclose(outputs["logits"], 0, atol=0.05)  # all actions about as likely


def test_orthogonal_kernels_prefer_no_direction():
    first = jax.vmap(lambda key: orthogonal(1.0)(key, (2, 2))[0])(jax.random.split(KEY, 4000))
    angles = np.arctan2(first[:, 1], first[:, 0])
    shares = np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0] / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.04)  # all of QR's own have one sign


@pytest.mark.parametrize("parts", [{"b": (5, 2, 2), "a": (5,)}, {"a": (5, 3)}])
def test_parts_of_an_observation_are_flattened_and_concatenated_by_name(parts):
    named = {name: jnp.arange(np.prod(shape)).reshape(shape) for name, shape in parts.items()}
    network = models.actor_critic(actions=2, hidden=(4,))
    params, outputs = _applied(network, named)
    joined = np.concatenate(
        [np.array(named[name], np.float32).reshape(5, -1) for name in sorted(named)], axis=1
    )
    same, _ = network.apply(params, {}, jnp.array(joined), key=None, train=False)
    np.testing.assert_array_equal(outputs["logits"], same["logits"])
    reordered = dict(reversed(named.items()))
    same, _ = network.apply(params, {}, reordered, key=None, train=False)
    np.testing.assert_array_equal(outputs["value"], same["value"])


def _inputs(network, first, recurrent=None, observation=OBSERVATIONS):
    recurrent = network.init_recurrent_state(len(observation)) if recurrent is None else recurrent
    return {"observation": observation, "recurrent": recurrent, "first": first}


@pytest.fixture(scope="module")
def remembering():
    network = models.actor_critic(actions=3, hidden=(8,), recurrent_size=6)
    inputs = _inputs(network, jnp.zeros(5, bool))
    params, _ = jax.jit(network.init)(KEY, inputs)
    return network, params, jax.jit(lambda i: network.apply(params, {}, i, key=None, train=False))


def test_the_recurrent_layer_is_a_gru_after_the_hidden_layers(remembering):
    network, params, apply = remembering
    before = np.array(jax.random.normal(KEY, (5, 6)))
    outputs, _ = apply(_inputs(network, jnp.zeros(5, bool), before))
    params = jax.tree.map(np.array, params)
    hidden, cell = params["torso"]["hidden"]["0"], params["cell"]
    x = np.tanh(np.array(OBSERVATIONS) @ hidden["kernel"] + hidden["bias"])
    reset_x, update_x, new_x = np.split(
        x @ cell["dense_i"]["kernel"] + cell["dense_i"]["bias"], 3, 1
    )
    reset_h, update_h, new_h = np.split(before @ np.array(cell["dense_h"]["kernel"]), 3, 1)
    reset, update = 1 / (1 + np.exp(-(reset_x + reset_h))), 1 / (1 + np.exp(-(update_x + update_h)))
    after = (1 - update) * np.tanh(new_x + reset * new_h) + update * before
    assert sorted(outputs) == ["logits", "recurrent", "value"]
    np.testing.assert_allclose(outputs["recurrent"], after, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        outputs["value"], (after @ params["value"]["head"]["kernel"])[:, 0], rtol=1e-4, atol=1e-5
    )


def test_the_recurrent_state_is_reset_where_an_episode_begins(remembering):
    network, _, apply = remembering
    first = jnp.array([True, False, True, False, True])
    fresh, _ = apply(_inputs(network, first))
    for bad in (1e3, jnp.nan):
        after, _ = apply(_inputs(network, first, jnp.full((5, 6), bad)))
        for name in fresh:
            np.testing.assert_array_equal(after[name][first], fresh[name][first])
            assert (after[name][~first] != fresh[name][~first]).any()


def test_the_recurrent_state_fits_a_scan(remembering):
    network, _, apply = remembering

    def step(recurrent, first):
        outputs, _ = apply(_inputs(network, first, recurrent))
        return outputs["recurrent"], outputs["value"]

    firsts = jnp.array([[True] * 5, [False] * 5])
    last, values = jax.lax.scan(step, network.init_recurrent_state(5), firsts)
    assert (last.shape, last.dtype, values.shape) == ((5, 6), jnp.float32, (2, 5))
    assert models.actor_critic(actions=2).init_recurrent_state(5) == ()


def test_in_lower_precision_outputs_and_recurrent_state_stay_float32(remembering):
    network, params, _ = remembering
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    inputs = _inputs(network, jnp.zeros(5, bool), observation=OBSERVATIONS.astype(jnp.bfloat16))
    outputs, _ = jax.eval_shape(
        lambda p, i: network.apply(p, {}, i, key=None, train=False), low, inputs
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"actions": 0}, ValueError, "actions must be at least 1; got 0"),
        ({"actions": 2.0}, TypeError, "actions must be a whole number; got 2.0"),
        ({"hidden": 64}, TypeError, "hidden must be a sequence of sizes"),
        ({"recurrent_size": 0}, ValueError, "recurrent_size must be at least 1; got 0"),
        ({"activation": "tan"}, ValueError, "activation must be one of relu, silu, tanh; got 'tan"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=f"actor_critic: {message}"):
        models.actor_critic(**{"actions": 2} | settings)


@pytest.mark.parametrize(
    ("recurrent_size", "inputs", "error", "message"),
    [
        (None, jnp.ones(()), ValueError, r"observations \[batch, ...\] .* got shape \(\)"),
        (None, {}, ValueError, "got a dict without one"),
        (None, {"a": {"b": OBSERVATIONS}}, TypeError, "a dict of them; got dict"),
        (
            4,
            OBSERVATIONS,
            TypeError,
            "with recurrent_size takes a dict of first, .*; got ShapeDtypeStruct",
        ),
        (4, {"observation": OBSERVATIONS}, TypeError, r"recurrent; got \['observation'\]"),
        (
            4,
            {"observation": OBSERVATIONS, "recurrent": jnp.ones((5, 3)), "first": jnp.ones(5)},
            ValueError,
            r"'recurrent' of shape \(5, 4\); got \(5, 3\)",
        ),
        (
            4,
            {"observation": OBSERVATIONS, "recurrent": jnp.ones((5, 4)), "first": jnp.ones(())},
            ValueError,
            r"'first' of shape \(5,\); got \(\)",
        ),
    ],
)
def test_wrong_inputs_are_errors(recurrent_size, inputs, error, message):
    with pytest.raises(error, match=message):
        models.actor_critic(actions=2, recurrent_size=recurrent_size).init(KEY, inputs)
