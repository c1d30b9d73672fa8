"""What does training many seeds at once gain over one after another?

Baseline: the same program without a population, one seed alone; n seeds one after another take n
times as long. Populations of growing size train the same program under `vmap`; the first has a
single member, which shows the overhead of a population.

Measured: environment steps per second of all members together, PPO on CartPole with 8 environments
per member and the library's defaults. A figure is one call of `fit` that trains for about a second,
fixed costs included. Contestants take turns; ratios are taken round by round. `--gpu` takes up to
1,024 seeds, in fewer and shorter rounds.
"""

import math

import _measuring
import jax
import optax

import models
import trainer
from trainer import rl
from trainer.rl import environments

ALONE = "one seed alone"
SIZES, GPU, QUICK = (1, 8, 64, 256), (1, 16, 128, 1024), (2,)


def entrants(sizes, envs, steps):
    """Build (run of so many epochs, environment steps an epoch) of each."""
    agent = rl.ppo(
        models.actor_critic(actions=2),
        environments.cartpole(),
        optax.adam(2.5e-3),
        rl.PPOConfig(envs=envs, steps=steps),
    )

    def runner(start, program):
        def run(epochs):
            state, _ = trainer.fit(start, program, epochs=epochs)
            jax.block_until_ready(state)

        return run

    found = {ALONE: (runner(agent.init(jax.random.key(0)), agent.program), envs * steps)}
    for size in sizes:
        start = trainer.population_of(agent.init, jax.random.split(jax.random.key(0), size))
        run = runner(start, trainer.population(agent.program, size))
        found[named(size)] = run, size * envs * steps
    return found


def named(size):
    return f"a population of {size}"


def contestants(sizes, *, envs, steps, seconds):
    """Build functions that give the environment steps per second."""
    made = {}
    for name, (run, steps_of_epoch) in entrants(sizes, envs, steps).items():
        run(1)
        epochs = max(1, math.ceil(seconds / _measuring.timed(lambda run=run: run(1))))

        def rate(run=run, epochs=epochs, steps_of_epoch=steps_of_epoch):
            return epochs * steps_of_epoch / _measuring.timed(lambda: run(epochs))

        made[name] = rate
    return made


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    sizes, rounds, seconds = (GPU, 5, 0.5) if options.gpu else (SIZES, 9, 1.0)
    envs, steps = 8, 128
    if options.quick:
        sizes, rounds, seconds, envs, steps = QUICK, 1, 0.0, 2, 8
    samples = _measuring.interleaved(
        contestants(sizes, envs=envs, steps=steps, seconds=seconds), rounds=rounds
    )
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()}
    ratios = {
        f"{named(size)} / alone": _measuring.ratio(samples[named(size)], samples[ALONE])
        for size in sizes
    }
    rows = [
        (name, _measuring.text(figure["median"]), *_over(ratios, name))
        for name, figure in measured.items()
    ]
    _measuring.show(
        "PPO on CartPole, environment steps per second of all members",
        ("", "steps/s", "over one seed alone"),
        rows,
    )
    _measuring.finish(
        options,
        "population_scaling",
        unit="environment steps/s of all members",
        warm_up=1,
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[],
    )


def _over(ratios, name):
    found = ratios.get(f"{name} / alone")
    return (_measuring.text(found["median"]) if found else "1",)


if __name__ == "__main__":
    main()
