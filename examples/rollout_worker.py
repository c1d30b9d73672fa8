"""Collect experience in CartPole with the newest parameters of another run, and write it.

python examples/cartpole.py --run runs/cartpole                 # in one process
python examples/rollout_worker.py --follow runs/cartpole        # in others beside it
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

import hooks
import models
import trainer
from trainer import rl
from trainer.host.atomic_files import atomic_replace
from trainer.rl import environments


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/cartpole-worker")
    follow: Path = Path("runs/cartpole")
    """Directory of the run whose parameters it uses."""
    wait: bool = False
    """Collect once with each checkpoint until no more come; else always with the newest."""
    timeout: float = 60.0
    """Seconds to wait for a checkpoint."""
    epochs: int = 100
    """Rollouts in all."""
    envs: int = 8
    """Environments that run at once."""
    steps: int = 128
    """Steps of each environment per rollout."""


def main(config: Config) -> None:
    env = environments.cartpole()
    network = models.actor_critic(actions=env.action_space.n)
    agent = rl.ppo(
        *(network, env, optax.identity()),
        rl.PPOConfig(envs=config.envs, steps=config.steps, minibatches=1),
    )
    state, _ = trainer.fit(
        agent.init(jax.random.key(config.seed)),
        agent.rollout,
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.follow_checkpoints(config.follow, wait=config.wait, timeout=config.timeout),
            write_experience(config.run / "experience"),
            hooks.build_hooks(config),
        ),
    )
    followed = state.hook_state["follow_checkpoints"]["epoch"]
    print(f"{int(state.epoch)} rollouts, the last one with epoch {followed} of {config.follow}")
    print("fingerprint", trainer.fingerprint(state))


def write_experience(folder: Path) -> hooks.Hook:
    """Write each rollout to `<folder>/<number>.npz`: arrays `[step, env, ...]` by name.

    `followed` is the epoch of the checkpoint that it used. A file appears whole; a rollout that is
    repeated after an interrupt replaces its file.
    """

    def write(state: trainer.TrainState, metrics: trainer.Metrics) -> trainer.TrainState:
        leaves = jax.tree_util.tree_leaves_with_path(metrics.output)
        arrays = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
        arrays["followed"] = state.hook_state["follow_checkpoints"]["epoch"]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{int(state.epoch) + 1:06}.npz"
        with atomic_replace(file) as beside, beside.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
        return state

    return hooks.on("rollout", hooks.observe(write))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
