"""PPO of Stable-Baselines3: the same layers, environments, steps, epochs and minibatches."""

import importlib.util

import _bare_ppo


def installed():
    return bool(importlib.util.find_spec("stable_baselines3"))


def stable_baselines(settings, rate, *, seed=0):
    """Build its algorithm.

    Args:
        settings: a `_bare_ppo.Settings`.
        rate: of Adam: a float, or a function of the share of the training that is left.
        seed: of all that is random.
    """
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

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
        stats_window_size=_bare_ppo.EPISODES,
        policy_kwargs={
            "net_arch": {"pi": layers, "vf": layers},
            "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": _bare_ppo.EPSILON},
        },
        device="cpu",  # as its authors advise for such a network
        seed=seed,
    )


def runner(settings, rate):
    """Build `run(iterations)`, which trains on."""
    algorithm, steps = stable_baselines(settings, rate), settings.envs * settings.steps

    def run(iterations):
        algorithm.learn(iterations * steps, reset_num_timesteps=False, log_interval=None)

    return run


def solve(settings, rate, total_steps, seed):
    """Train until the last episodes reach the return; return the environment steps, or None."""
    from stable_baselines3.common.callbacks import BaseCallback

    class StopAtReturn(BaseCallback):
        reached = None

        def _on_step(self):
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            if self.n_calls % settings.steps or len(returns) < _bare_ppo.EPISODES:
                return True
            if sum(returns) / len(returns) < _bare_ppo.RETURN:
                return True
            self.reached = self.num_timesteps
            return False

    stopping = StopAtReturn()
    algorithm = stable_baselines(settings, lambda left: rate * left, seed=seed)
    algorithm.learn(total_steps, callback=stopping, log_interval=None)
    return stopping.reached
