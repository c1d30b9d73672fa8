"""Train 64 seeds at once, stop each at the target, and plot the spread. Run it again to resume.

python examples/population.py --members 64
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import hooks
import models
import trainer
from trainer import configuration, rl
from trainer.configuration import Optimizer, Schedule
from trainer.rl import environments


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/population")
    epochs: int = 97
    """Rollouts, each followed by an update: by default 99,328 steps of each member."""
    batch_size: int = 256
    """Transitions in a minibatch."""
    members: int = 64
    """Seeds that train at once."""
    envs: int = 16
    """Environments of each member."""
    steps: int = 64
    """Steps of each environment per epoch."""
    passes: int = 10
    """Passes over the experience of an epoch."""
    target: float = 475.0
    """Mean return of a member's 32 episodes at which it stops."""
    optimizer: Optimizer = Optimizer("adam", learning_rate=2e-3, clip_norm=0.5)
    schedule: Schedule = Schedule("linear")


def main(config: Config) -> None:
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
    evaluation = trainer.population(rl.evaluation_of(network, env, episodes=32), config.members)
    keys = jax.random.split(jax.random.key(config.seed), config.members)

    state, history = trainer.fit(
        trainer.population_of(agent.init, keys),
        trainer.population(agent.program, config.members),
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.evaluate(evaluation),
            hooks.each(hooks.stop_at_return(config.target, metric="val/return")),
            hooks.each(hooks.stop_on_nan()),
            count_live_members,
            hooks.build_hooks(config, given={"val": evaluation}),
        ),
    )
    stopped = config.members - int(np.sum(state.carry["live"]))
    print(f"{stopped} of {config.members} members reached {config.target:g}")
    if history:
        plot(history, int(state.epoch), config)
        scores = trainer.evaluate(state, evaluation)
        best = trainer.best_member(state, scores, "val/return")
        print(f"the best: {max(scores['val/return'].values):g} after {int(best.step)} updates")
    print("fingerprint", trainer.fingerprint(state))


@hooks.writes("population/live")
def count_live_members(state, metrics):
    """Score the number of live members: a hook without `each` gets the stacked state."""
    live = float(np.sum(state.carry["live"]))
    return state.replace(scores={**state.scores, "population/live": live})


def plot(history: list[dict[str, float]], epoch: int, config: Config) -> None:
    """Draw the returns of all members, up to this epoch, over the environment steps of each."""
    matplotlib.use("Agg")
    returns = np.array([epoch["val/return"].values for epoch in history])
    steps = np.arange(epoch - len(history) + 1, epoch + 1) * config.envs * config.steps
    low, middle, high = np.percentile(returns, (10, 50, 90), axis=1)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, returns, color="tab:blue", alpha=0.15, linewidth=0.7)
    axes.fill_between(steps, low, high, color="tab:blue", alpha=0.2, label="10 to 90%")
    axes.plot(steps, middle, color="tab:blue", linewidth=2, label="median")
    axes.set(xlabel="environment steps of each member", ylabel="mean return", title="CartPole")
    axes.legend(loc="lower right")
    figure.savefig(config.run / "spread.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
