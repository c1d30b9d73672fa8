"""PPO of Rejax, one compiled function for the whole training, on gymnax's CartPole.

Usual: 128 episodes of evaluation before and after. Fastest: none.
"""

import jax
import rejax
from _ppo_settings import RATE
from gymnax.environments.classic_control import cartpole


class CartPole(cartpole.CartPole):
    """gymnax's, with the five values that Rejax unpacks: newer versions have six."""

    def step(self, *arguments):
        observation, state, reward, *ended, info = super().step(*arguments)
        return observation, state, reward, ended[0] | ended[-1], info


def usual(settings):
    """Train, and evaluate."""
    return train(settings, {})


def no_evaluation(settings):
    """Train."""
    return train(settings, {"skip_initial_evaluation": True, "eval_callback": lambda *_: ()})


def train(settings, others):
    """Build `run`; a function is compiled for each number of iterations."""
    trained = {}

    def build(iterations):
        steps = iterations * settings.envs * settings.steps
        algorithm = rejax.get_algo("ppo").create(
            env=CartPole(),
            agent_kwargs={
                "activation": "tanh",
                "hidden_layer_sizes": (settings.hidden, settings.hidden),
            },
            num_envs=settings.envs,
            num_steps=settings.steps,
            num_epochs=settings.epochs,
            num_minibatches=settings.minibatches,
            gamma=settings.discount,
            gae_lambda=settings.gae_lambda,
            clip_eps=settings.clip,
            vf_coef=settings.value_coefficient,
            ent_coef=settings.entropy_coefficient,
            max_grad_norm=settings.clip_norm,
            learning_rate=RATE,
            total_timesteps=steps,
            eval_freq=steps,
        )
        return jax.jit(algorithm.replace(**others).train)

    def run(iterations):
        if iterations not in trained:
            trained[iterations] = build(iterations)
        jax.block_until_ready(trained[iterations](jax.random.key(0)))

    return run
