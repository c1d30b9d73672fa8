"""PPO of Stable-Baselines3: the same layers, environments, steps, epochs and minibatches.

Usual: PyTorch's threads, one for each core. Fastest: one thread, as the network is small.
"""

import torch
from _ppo_settings import EPISODES, EPSILON, RATE, RETURN
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


def build(settings, rate=RATE, *, seed=0):
    """Build the algorithm; `rate` is a float, or a function of the share of training left."""
    layers = [settings.hidden] * 2
    return PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", settings.envs, seed=seed),
        learning_rate=rate,
        n_steps=settings.steps,
        batch_size=settings.envs * settings.steps // settings.minibatches,
        n_epochs=settings.epochs,
        gamma=settings.discount,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip,
        ent_coef=settings.entropy_coefficient,
        vf_coef=settings.value_coefficient,
        max_grad_norm=settings.clip_norm,
        stats_window_size=EPISODES,
        policy_kwargs={
            "net_arch": {"pi": layers, "vf": layers},
            "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": EPSILON},
        },
        device="cpu",  # as its authors advise for such a network
        seed=seed,
    )


def usual(settings):
    """Train with PyTorch's threads."""
    algorithm, steps = build(settings), settings.envs * settings.steps

    def run(iterations):
        algorithm.learn(iterations * steps, reset_num_timesteps=False, log_interval=None)

    return run


def one_thread(settings):
    """Train with one thread."""
    torch.set_num_threads(1)
    return usual(settings)


class StopAtReturn(BaseCallback):
    """Stop when the last episodes reach the return, at the end of a rollout."""

    reached = None
    """Environment steps until then."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def _on_step(self):
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        if self.n_calls % self.steps or len(returns) < EPISODES:
            return True
        if sum(returns) / len(returns) < RETURN:
            return True
        self.reached = self.num_timesteps
        return False


def solve(settings, total_steps, seed):
    """Train until the last episodes reach the return; return the environment steps, or None."""
    stopping = StopAtReturn(settings.steps)
    algorithm = build(settings, lambda left: RATE * left, seed=seed)
    algorithm.learn(total_steps, callback=stopping, log_interval=None)
    return stopping.reached
