"""JAX's strict settings: no rank promotion, no key used twice, no change with 64 bits.

Tests compute only shapes where that is enough, which takes no compilation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses, rl
from trainer.data import augmentation
from trainer.rl import PPOConfig, environments, normalization, ppo
from trainer.state import stream_seed

pytestmark = pytest.mark.usefixtures("compiled_quickly")

IMAGES, TOKENS = jnp.ones((4, 8, 8, 1)), jnp.ones((4, 8), jnp.int32)
RECURRENT = {
    "observation": jnp.ones((4, 3)),
    "recurrent": jnp.zeros((4, 5)),
    "first": jnp.zeros(4, bool),
}
SMALL = {"vocabulary": 11, "context": 8, "layers": 2, "width": 16, "heads": 2}
SETTINGS = {
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "keys": lambda: jax.debug_key_reuse(True),
    "64 bits": lambda: jax.enable_x64(True),
}

NETWORKS = {
    "mlp": lambda: (models.mlp(classes=3, hidden=(4,)), IMAGES),
    "cnn": lambda: (models.cnn(classes=3), IMAGES),
    "resnet": lambda: (models.resnet(classes=3), IMAGES),
    "transformer": lambda: (models.transformer(**SMALL), TOKENS),
    "captioner": lambda: (
        models.captioner(**SMALL, channels=1, encoder_layers=1),
        {"image": IMAGES, "tokens": TOKENS},
    ),
    "actor_critic": lambda: (models.actor_critic(actions=2, hidden=(4,)), IMAGES),
    "continuous": lambda: (models.actor_critic(actions=2, continuous=True), IMAGES),
    "recurrent": lambda: (models.actor_critic(actions=2, hidden=(4,), recurrent_size=5), RECURRENT),
}


@pytest.fixture(params=SETTINGS)
def strict(request):
    """Set one of JAX's strict settings."""
    with SETTINGS[request.param]():
        yield request.param


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(strict, name):
    network, inputs = NETWORKS[name]()
    made = jax.eval_shape(network.init, jax.random.key(0), inputs)

    def applied(params, model_state, key):
        return network.apply(params, model_state, inputs, key=key, train=True)

    outputs, _ = jax.eval_shape(applied, *made, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2, "clip_norm": 1.0}, {"precision": "float16"}]
)
def test_supervised_training_and_evaluation(strict, settings):
    source = data.Arrays({"inputs": np.ones((6, 5), "float32"), "labels": np.ones(6, "int32")}, 4)
    network = models.mlp(classes=2, hidden=(4,))
    task = trainer.supervised(
        network,
        losses.classification,
        optax.adam(0.1),
        augment=augmentation.mixup(0.2, classes=2) if settings == {} else None,
        **settings,
    )
    state = task.init(jax.random.key(0), source.example)
    for phase in (trainer.training(task.step, source), trainer.evaluation(task.measure, source)):
        phase.infer_shapes(state)
    assert (state.step.dtype, state.epoch.dtype) == (jnp.int32, jnp.int32)


def test_reinforcement_learning(strict):
    env = environments.gridworld()
    agent = ppo(
        models.actor_critic(actions=env.action_space.n, hidden=(4,)),
        env,
        optax.adam(0.1),
        PPOConfig(envs=4, steps=8, normalize_observations=True, normalize_rewards=True),
    )
    state, output = jax.eval_shape(agent.init, jax.random.key(0)), None
    for phase in agent.program:
        output = phase.infer_shapes(phase.add_position(state), output).output


def test_augmentations(strict):
    batch = {"inputs": IMAGES, "labels": jnp.zeros(4, jnp.int32)}
    for change in (
        augmentation.shift(1),
        augmentation.cut_out(2),
        augmentation.mixup(0.2, classes=2),
    ):
        made = jax.eval_shape(change, jax.random.key(0), batch)
        assert (made["inputs"].shape, made["inputs"].dtype) == (IMAGES.shape, jnp.float32)


@pytest.mark.parametrize("make", [environments.cartpole, environments.gridworld])
def test_pictures_of_environments(strict, make):
    env = make()

    def drawn(key):
        state, _ = env.reset(key, env.params)
        return env.render(state, env.params)

    picture = jax.eval_shape(drawn, jax.random.key(0))
    assert (picture.shape[-1], picture.dtype) == (3, jnp.uint8)


def test_losses_and_returns(strict):
    labels = {"labels": TOKENS, "inputs": TOKENS, "targets": jnp.ones((4, 2))}
    jax.eval_shape(lambda o: losses.language_modeling(o, labels), jnp.ones((4, 8, 11)))
    jax.eval_shape(lambda o: losses.regression(o, labels), jnp.ones((4, 2)))
    seen = normalization.update_statistics(
        normalization.init_statistics(jnp.zeros(3)), jnp.ones((5, 4, 3))
    )
    assert normalization.normalize(seen, jnp.ones((5, 4, 3))).shape == (5, 4, 3)


def test_generation(strict):
    network = models.transformer(**SMALL)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), TOKENS)
    sampled = jax.eval_shape(
        lambda params, key: models.generate(network, params, TOKENS[:, :2], key=key, length=3),
        *(params, jax.random.key(0)),
    )
    assert sampled.tokens.dtype == jnp.int32


def test_a_stretch_of_data_is_shuffled_by_a_seed_of_32_bits(strict):
    arrays = data.Arrays({"inputs": np.ones((6, 2), np.float32)}, 2, steps_per_epoch=2)
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    phase = trainer.training(lambda s, batch: (s.replace(step=s.step + 1), {}), arrays)
    assert 0 <= stream_seed(state) < 2**32
    phase.infer_shapes(phase.add_position(state))


def test_python_numbers_describe_a_lesson(strict):
    env = environments.cartpole()
    made = rl.lessons(env, {"heavy": env.params.replace(gravity=20.0)})
    assert {leaf.dtype for leaf in jax.tree.leaves(made.params)} == {np.dtype("float32")}


def test_members_of_a_population(strict):
    arrays = data.Arrays({"inputs": np.ones((4, 3), np.float32), "labels": np.zeros(4, int)}, 2)
    network = models.mlp(classes=2, hidden=(4,), dropout=0.1)
    task = trainer.supervised(network, losses.classification, optax.adam(0.1))
    states = [task.init(jax.random.key(seed), arrays.example) for seed in (0, 1)]
    for _ in range(2):  # the same states, stacked twice
        state = trainer.stack_states(states)
    trainer.population(trainer.training(task.step, arrays), 2).infer_shapes(state)


def test_a_line_search_takes_the_same_dropout_at_each_loss():
    batch = {"inputs": jnp.ones((4, 3)), "labels": jnp.zeros(4, jnp.int32)}
    network = models.mlp(classes=2, hidden=(4,), dropout=0.1)
    task = trainer.supervised(network, losses.classification, optax.lbfgs())
    with jax.debug_key_reuse(True):
        jax.jit(task.step).trace(task.init(jax.random.key(0), batch), batch)
