"""Arrays that a function closes over are arguments of its program, never constants in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import models
import trainer
from trainer import losses, rl
from trainer.placement.hoisting import jit_hoisted
from trainer.rl.environments import cartpole
from trainer.rl.policies import init_weights

KEY = jax.random.key(0)


@pytest.fixture
def few_constants():
    """Let JAX warn, which is an error here, where a program holds constants of 4 KB."""
    before = jax.config.jax_captured_constants_warn_bytes
    jax.config.update("jax_captured_constants_warn_bytes", 4096)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


def make_trained(rows):
    """Return a network of one kernel of these rows of 40 bytes, and its parameters."""
    params = {"kernel": jnp.ones((rows, 10))}
    network = models.Network(
        lambda key, x: ({"kernel": jnp.zeros((rows, 10))}, {}),
        lambda params, model_state, x, *, key, train: (params["kernel"][x], model_state),
    )
    return models.pretrained(network, params), params


EXAMPLE = {"inputs": np.zeros(8, np.int32), "labels": np.zeros(8, np.int32)}


def test_the_warning_warns(few_constants):
    array = jnp.ones(2048)
    with pytest.raises(UserWarning, match="constants"):
        jax.jit(lambda x: x + array)(1.0)


def test_what_is_returned_unchanged_is_the_same_array(few_constants):
    array, host = jnp.ones(2048), np.ones(2048)
    found = jit_hoisted(lambda x: {"same": array, "more": array + x, "x": x, "host": host})(1.0)
    assert found["same"] is array
    np.testing.assert_array_equal(found["more"], np.full(2048, 2.0))
    assert isinstance(found["host"], jax.Array)
    assert float(found["x"]) == 1


def test_members_of_a_population_share_what_is_closed_over(few_constants):
    array = jnp.arange(2048.0)
    found = jax.vmap(jit_hoisted(lambda x: (array, array.sum() * x)))(jnp.arange(3.0))
    np.testing.assert_array_equal(found[0], np.broadcast_to(array, (3, 2048)))
    np.testing.assert_allclose(found[1], array.sum() * np.arange(3))


def test_the_state_of_a_pretrained_network_holds_its_arrays(few_constants):
    network, params = make_trained(5_000_000)  # 200 MB
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1))
    state = task.init(KEY, EXAMPLE)
    assert state.params["kernel"] is params["kernel"]


def test_a_state_on_a_mesh_takes_the_arrays_that_lie_there(few_constants):
    network, params = make_trained(800)
    mesh = trainer.mesh()
    split = NamedSharding(mesh, P("data"))
    placed = {"kernel": jax.device_put(params["kernel"], split)}
    rules = [("^params/", P("data"))]
    for given, same in (placed, True), (params, False):
        task = trainer.supervised(
            models.pretrained(network, given), losses.classification, optax.sgd(0.1, momentum=0.9)
        )
        state = trainer.spread(lambda task=task: task.init(KEY, EXAMPLE), mesh, rules=rules)
        assert (state.params["kernel"] is given["kernel"]) == same
        assert state.params["kernel"].sharding == split
        assert jax.tree.leaves(state.opt_state)[0].sharding == split
    del state
    committed = {"kernel": jax.device_put(params["kernel"], jax.devices()[1])}
    task = trainer.supervised(
        models.pretrained(network, committed), losses.classification, optax.adam(0.1)
    )
    state = trainer.spread(lambda: task.init(KEY, EXAMPLE), mesh, rules=rules)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state.params)} == {mesh}


def test_an_agent_starts_with_a_pretrained_policy(few_constants, compiled_quickly):
    env, network = cartpole(), models.actor_critic(actions=2)
    shapes = jax.eval_shape(lambda: init_weights(network, env, KEY).params)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    config = rl.PPOConfig(envs=4, steps=4)
    agent = rl.ppo(models.pretrained(network, params), env, optax.sgd(0.1), config)
    found = agent.init(KEY).params
    assert all(map(lambda a, b: a is b, jax.tree.leaves(params), jax.tree.leaves(found)))
