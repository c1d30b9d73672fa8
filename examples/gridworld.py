"""Learn to find a key and a locked door, by lessons or from a teacher. Run it again to resume.

python examples/gridworld.py                                    # lessons open one by one
python examples/gridworld.py --curriculum uniform --run runs/gridworld-uniform
python examples/gridworld.py --teacher runs/gridworld --run runs/gridworld-student
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import optax

import hooks
import models
import trainer
from trainer import configuration, losses, rl
from trainer.configuration import Checkpointing, Optimizer
from trainer.rl import distillation, environments

LESSONS = ("empty", "two_rooms", "key")
GOAL = f"val/return/{LESSONS[-1]}"


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/gridworld")
    epochs: int = 400
    batch_size: int = 512
    """Transitions in a minibatch."""
    envs: int = 64
    """Environments that run at once."""
    steps: int = 64
    """Steps of each environment per epoch."""
    recurrent_size: int = 64
    """Size of the policy's recurrent state."""
    curriculum: Literal["thresholds", "progress", "uniform"] = "thresholds"
    """Open lessons one by one; draw them by progress; or draw them uniformly."""
    teacher: Path | None = None
    """Directory of a run to learn from."""
    teacher_recurrent_size: int = 64
    """Size of the recurrent state of that run's policy."""
    teacher_steps: int = 1000
    """Optimizer steps until the teacher's weight is 0."""
    target: float = 0.6
    """Return of the last lesson at which to stop."""
    optimizer: Optimizer = Optimizer("adam", learning_rate=2e-3, clip_norm=0.5)
    checkpointing: Checkpointing = Checkpointing(best=GOAL)


def main(config: Config) -> None:
    levels = environments.gridworld_levels()
    weights = {LESSONS[0]: 1.0} if config.curriculum == "thresholds" else None
    params = {name: levels[name] for name in LESSONS}
    env = rl.lessons(environments.gridworld(), params, weights=weights)
    network, loss, teacher = build_policy(env, config.recurrent_size), rl.ppo_loss(), None
    if config.teacher:
        teacher = distillation.restore_teacher(
            build_policy(env, config.teacher_recurrent_size), config.teacher, env
        )
        weight = optax.linear_schedule(1.0, 0.0, config.teacher_steps)
        loss = losses.total(loss, (distillation.kickstart(), weight))
    minibatches = rl.count_minibatches(config.envs, config.steps, config.batch_size)
    agent = rl.ppo(
        network,
        env,
        configuration.optimizer(config, config.epochs * 4 * minibatches),
        rl.PPOConfig(
            envs=config.envs,
            steps=config.steps,
            minibatches=minibatches,
            clip_norm=config.optimizer.clip_norm,
        ),
        loss=loss,
        teacher=teacher,
    )
    evaluation = rl.evaluation_of(network, env, episodes=64, greedy=False)

    state, _ = trainer.fit(
        agent.init(jax.random.key(config.seed)),
        agent.program,
        epochs=config.epochs,
        hooks=hooks.chain(
            build_curriculum(config, env.lessons),
            hooks.every(5, hooks.evaluate(evaluation)),
            hooks.stop_at_return(config.target, metric=GOAL),
            hooks.stop_on_nan(),
            hooks.build_hooks(config, given={"val": evaluation}),
        ),
    )
    steps = int(state.epoch) * config.envs * config.steps
    print(f"{'reached' if state.stop else 'missed'} {config.target} after {steps:,} steps")
    print("fingerprint", trainer.fingerprint(state))


def build_policy(env: environments.Environment, recurrent_size: int) -> models.ActorCritic:
    return models.actor_critic(
        actions=env.action_space.n, hidden=(64,), recurrent_size=recurrent_size
    )


def build_curriculum(config: Config, lessons: tuple[str, ...]) -> hooks.Hook | tuple[()]:
    if config.curriculum == "uniform":
        return ()
    if config.curriculum == "progress":
        return hooks.adapt_curriculum(lessons, hooks.learning_progress())
    passed = dict.fromkeys(lessons[:-1], 0.6)
    return hooks.adapt_curriculum(lessons, hooks.thresholds(passed))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
