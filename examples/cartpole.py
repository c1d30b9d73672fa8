"""Learn to balance a pole until the mean return is 475. Run it again to resume.

python examples/cartpole.py --seed 1
entracte simulate runs/cartpole --with examples/cartpole.py:simulation --episodes 3
"""

from dataclasses import dataclass
from pathlib import Path

import jax

import hooks
import models
import trainer
from trainer import configuration, rl
from trainer.configuration import Checkpointing, Optimizer, Schedule
from trainer.rl import environments


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/cartpole")
    epochs: int = 97
    """Rollouts, each followed by an update: by default 99,328 environment steps."""
    batch_size: int = 256
    """Transitions in a minibatch."""
    envs: int = 16
    """Environments that run at once."""
    steps: int = 64
    """Steps of each environment per epoch."""
    passes: int = 10
    """Passes over the experience of an epoch."""
    mesh: str = ""
    """Devices to spread over, such as data=8; without it one device."""
    target: float = 475.0
    """Mean return of 100 episodes at which to stop."""
    optimizer: Optimizer = Optimizer("adam", learning_rate=2e-3, clip_norm=0.5)
    schedule: Schedule = Schedule("linear")
    checkpointing: Checkpointing = Checkpointing(best="val/return")


def build(config: Config):
    """Return the environment, the network and the agent of a configuration."""
    env = environments.cartpole()
    network = models.actor_critic(actions=env.action_space.n)
    minibatches = rl.count_minibatches(config.envs, config.steps, config.batch_size)
    agent = rl.ppo(
        network,
        env,
        configuration.optimizer(config, config.epochs * config.passes * minibatches),
        rl.PPOConfig(
            envs=config.envs,
            steps=config.steps,
            epochs=config.passes,
            minibatches=minibatches,
            discount=0.98,
            gae_lambda=0.9,
            clip_norm=config.optimizer.clip_norm,
        ),
        loss=rl.ppo_loss(entropy_coefficient=0.0),
    )
    return env, network, agent


def simulation(
    checkpoint,
    *,
    episodes: int = 3,
    greedy: bool = True,
    seed: int = 0,
    to: Path = Path("simulated"),
) -> None:
    """Run episodes with the policy of a checkpoint, and write them as animations.

    Args:
        checkpoint: whose policy acts.
        episodes: number of episodes.
        greedy: choose the likeliest action, or sample it.
        seed: of all random numbers in the episodes.
        to: folder for the animations.
    """
    config = trainer.load_config(checkpoint.directory / "config.yaml", Config)
    env, network, agent = build(config)
    state = checkpoint.restore(agent.init(jax.random.key(config.seed)))
    record = hooks.record_replays(network, env, to, episodes=episodes, greedy=greedy, seed=seed)
    record(state, {})
    for number in range(episodes):
        file = to / "replays" / f"{int(state.epoch)}-{number}.json"
        replay = rl.load_replay(file)
        print(
            f"{file.with_suffix('.gif')}: {replay.length} steps, return {replay.episode_return:g}"
        )


def main(config: Config) -> None:
    env, network, agent = build(config)
    evaluation = rl.evaluation_of(network, env, episodes=100)
    writers = hooks.build_writers(config)

    def last(state, metrics):
        """Return whether this epoch is the last one."""
        return state.stop or int(state.epoch) == config.epochs

    start = agent.init(jax.random.key(config.seed))
    state, _ = trainer.fit(
        trainer.spread(start, trainer.mesh(config.mesh)) if config.mesh else start,
        agent.program,
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.every(5, hooks.evaluate(evaluation)),
            hooks.stop_at_return(config.target, metric="val/return"),
            hooks.stop_on_nan(),
            hooks.when(last, hooks.record_replays(network, env, config.run, *writers)),
            hooks.build_hooks(config, writers=writers, given={"val": evaluation}),
        ),
    )
    steps = int(state.epoch) * config.envs * config.steps
    print(f"{'reached' if state.stop else 'missed'} {config.target:g} after {steps:,} steps")
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
