"""Evaluate the policy of a CartPole run that trains elsewhere, checkpoint by checkpoint.

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
    """Directory of the evaluated run."""
    timeout: float = 60.0
    """Seconds to wait for a checkpoint; if none comes, it ends."""
    epochs: int = 10_000
    """Checkpoints to evaluate at most."""
    episodes: int = 64
    """Episodes per checkpoint."""
    sampled: bool = False
    """Sample actions from the policy, instead of taking the likeliest."""


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
    done = int(state.epoch)
    print(f"{done} checkpoints evaluated, the last one epoch {followed} of {config.follow}")
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
