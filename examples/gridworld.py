"""Learn to find a key and a locked door, lesson by lesson, or from a teacher. Again, it resumes.

python examples/gridworld.py                                    # lessons open as they are learnt
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
    """Transitions a minibatch."""
    envs: int = 64
    """Environments that play at once."""
    steps: int = 64
    """Steps of each in an epoch."""
    recurrent_size: int = 64
    """Size of what the policy remembers."""
    curriculum: Literal["thresholds", "progress", "uniform"] = "thresholds"
    """Open lessons one by one; draw them by progress; or draw them alike."""
    teacher: Path | None = None
    """Directory of a run to learn from."""
    teacher_recurrent_size: int = 64
    """Size of what that run's policy remembers."""
    teacher_steps: int = 1000
    """Optimizer steps until the teacher has nothing more to say."""
    target: float = 0.6
    """Return of the last lesson at which to stop."""
    optimizer: Optimizer = Optimizer("adam", learning_rate=2e-3, clip_norm=0.5)
    checkpointing: Checkpointing = Checkpointing(best=GOAL)


def main(config: Config) -> None:
    levels = environments.gridworld_levels()
    weights = {LESSONS[0]: 1.0} if config.curriculum == "thresholds" else None
    params = {name: levels[name] for name in LESSONS}
    env = rl.lessons(environments.gridworld(), params, weights=weights)
    network, loss, teacher = policy(env, config.recurrent_size), rl.ppo_loss(), None
    if config.teacher:
        teacher = distillation.restore_teacher(
            policy(env, config.teacher_recurrent_size), config.teacher, env
        )
        fading = optax.linear_schedule(1.0, 0.0, config.teacher_steps)
        loss = losses.total(loss, (distillation.kickstart(), fading))
    minibatches = rl.minibatches_of(config.envs, config.steps, config.batch_size)
    agent = rl.ppo(
        network,
        env,
        configuration.optimizer(config, config.epochs * 4 * minibatches),
        envs=config.envs,
        steps=config.steps,
        minibatches=minibatches,
        loss=loss,
        teacher=teacher,
        clip_norm=config.optimizer.clip_norm,
    )
    exam = rl.evaluation_of(network, env, episodes=64, greedy=False)

    state, _ = trainer.fit(
        agent.init(jax.random.key(config.seed)),
        agent.program,
        epochs=config.epochs,
        hooks=hooks.chain(
            adapting(config, env.lessons),
            hooks.every(5, hooks.evaluate(exam)),
            hooks.stop_at_return(config.target, metric=GOAL),
            hooks.stop_on_nan(),
            hooks.build_hooks(config, given={"val": exam}),
        ),
    )
    played = int(state.epoch) * config.envs * config.steps
    print(f"{'reached' if state.stop else 'missed'} {config.target} after {played:,} steps")
    print("fingerprint", trainer.fingerprint(state))


def policy(env: environments.Environment, recurrent_size: int) -> models.ActorCritic:
    return models.actor_critic(
        actions=env.action_space.n, hidden=(64,), recurrent_size=recurrent_size
    )


def adapting(config: Config, lessons: tuple[str, ...]) -> hooks.Hook | tuple[()]:
    if config.curriculum == "uniform":
        return ()
    if config.curriculum == "progress":
        return hooks.adapt_curriculum(lessons, hooks.learning_progress())
    passed = dict.fromkeys(lessons[:-1], 0.6)
    return hooks.adapt_curriculum(lessons, hooks.thresholds(passed))


if __name__ == "__main__":
    main(trainer.parse_config(Config, description=__doc__))
