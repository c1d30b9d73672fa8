"""Measure the policy of a CartPole run that trains elsewhere, commit by commit, as they come.

python examples/cartpole.py --run runs/cartpole                 # in one process
python examples/evaluator.py --follow runs/cartpole             # in another beside it
"""

from dataclasses import dataclass
from pathlib import Path

import jax

import hooks
import models
import trainer
from trainer import rl
from trainer.rl import environments, policies


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/cartpole-evaluator")
    follow: Path = Path("runs/cartpole")
    """Directory of the run that is measured."""
    timeout: float = 60.0
    """Seconds to wait for a commit; where none comes, it ends."""
    epochs: int = 10_000
    """Commits to measure at most."""
    episodes: int = 64
    """Episodes that a commit is measured on."""
    sampled: bool = False
    """Draw actions by the policy's chances, in the place of the likeliest."""


def main(config: Config) -> None:
    env = environments.cartpole()
    network = models.actor_critic(actions=env.action_space.n)
    exam = rl.evaluation_of(network, env, episodes=config.episodes, greedy=not config.sampled)
    key = jax.random.key(config.seed)
    weights = policies.init_weights(network, env, key)
    start = trainer.TrainState.create(
        params=weights.params, model_state=weights.model_state, rng=key
    )
    state, _ = trainer.fit(
        start,
        exam,
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.follow_checkpoints(config.follow, wait=True, timeout=config.timeout),
            hooks.build_hooks(config, given={"val": exam}),
        ),
    )
    followed = state.hook_state["follow_checkpoints"]["epoch"]
    print(f"{int(state.epoch)} commits measured, the last one epoch {followed} of {config.follow}")
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    main(trainer.parse_config(Config, description=__doc__))
