"""How fast does PPO learn CartPole, against bare JAX and against Stable-Baselines3?

The library takes part twice: as the program of a rollout and an update, an epoch each, and with
`trainer.repeated`, many of them in one dispatch, a fifth of all iterations.

Baseline: PPO in one file of bare JAX (`_bare_ppo.py`), with its own physics and network: as one
dispatch an iteration, whose metrics are read each time as the library's are, and as one scan over
all iterations, in which nobody can look on, stop or save. The bar is held against the faster one.
Stable-Baselines3 (`_ppo_peers.py`) takes part where it is installed.

With `--gpu`, 4,096 environments, in fewer and shorter rounds, and nothing else.

Measured: environment steps per second of whole iterations, rollout and update, at the library's
defaults, at the settings that solve CartPole, and with many environments: a figure is one call that
trains for about a second, all its fixed costs included. And the seconds until the last 100 episodes
have a mean return of 475, from new parameters on, each seed once by newly compiled functions and
once by the same again, compiled. Contestants take turns; ratios are taken round by round.

A step of Stable-Baselines3's loop costs about the same for many environments as for few, so that
the more there are, the less it is behind. Its threads wait for each other: where other programs
keep the cores busy, its figures fall tenfold and more, and say nothing.
"""

import functools
import importlib.util
import math

import _bare_ppo
import _measuring
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _ppo_settings import DEFAULTS, MANY, QUICK, RATE, RETURN, SOLVING, Settings
from contestants import library_runs

import trainer

LIBRARY, REPEATED = "library", "library, repeated"
DISPATCH, SCAN = "bare JAX, one dispatch an iteration", "bare JAX, one scan"
PEER = "Stable-Baselines3"
SETTINGS = {
    "8 environments, defaults": DEFAULTS,
    "16 environments, as solved": SOLVING,
    "128 environments": MANY,
}
GPU = {"4,096 environments": Settings(envs=4096, steps=32)}
TOTAL_STEPS = 100_000
"""Where CartPole is to be solved; the rate falls to 0 over them."""


def bare(make, settings):
    """Build `run(iterations)` of a bare variant."""
    optimizer = _bare_ppo.adam(RATE, settings)
    start = _bare_ppo.init(jax.random.key(0), settings, optimizer)
    train = make(settings, optimizer)

    def run(iterations):
        train(jax.tree.map(jnp.copy, start), iterations)

    return run


def entrants(settings):
    """Build `run(iterations)` of each, which returns when all is there."""
    return {
        LIBRARY: library_runs.usual(settings),
        REPEATED: library_runs.repeated(settings),
        DISPATCH: bare(_bare_ppo.one_dispatch_an_iteration, settings),
        SCAN: bare(_bare_ppo.one_scan, settings),
    }


def throughput(settings, *, rounds, seconds):
    """Return the environment steps per second of each entrant, one figure a round."""
    contestants = {}
    for entrant, run in entrants(settings).items():
        run(2)
        one = _measuring.timed(lambda run=run: run(2)) / 2
        iterations = max(5, 5 * math.ceil(seconds / one / 5))
        run(iterations)  # one scan is compiled for their number

        def rate(run=run, iterations=iterations):
            steps = iterations * settings.envs * settings.steps
            return steps / _measuring.timed(lambda: run(iterations))

        contestants[entrant] = rate
    return _measuring.interleaved(contestants, rounds=rounds)


def falling(settings, iterations):
    """Return the learning rate at each update."""
    return optax.linear_schedule(RATE, 0.0, iterations * settings.epochs * settings.minibatches)


def library_solving(settings, iterations):
    """Build `solve(seed)`, which gives the environment steps that it took, or None."""
    made = library_runs.build_agent(settings, falling(settings, iterations))

    def solve(seed):
        ended = []

        def stop_when_solved(state, metrics):
            count = round(metrics["rollout/episodes"])
            ended.append((count, count * metrics["rollout/return"] if count else 0.0))
            mean = _bare_ppo.recent(ended)
            return state.replace(stop=mean is not None and mean >= RETURN)

        start = made.init(jax.random.key(seed))
        state, history = trainer.fit(start, made.program, epochs=iterations, hooks=stop_when_solved)
        jax.block_until_ready(state)
        return len(history) * settings.envs * settings.steps if state.stop else None

    return solve


def bare_solving(settings, iterations):
    """Build `solve(seed)` of one dispatch an iteration, which can stop."""
    optimizer = _bare_ppo.adam(falling(settings, iterations), settings)
    one = _bare_ppo.compiled(settings, optimizer)
    init = jax.jit(functools.partial(_bare_ppo.init, settings=settings, optimizer=optimizer))

    def solve(seed):
        return _bare_ppo.solve(one, init(jax.random.key(seed)), iterations, settings)

    return solve


def has_peer():
    return bool(importlib.util.find_spec("stable_baselines3"))


def solve_with_peer(settings, total_steps, seed):
    from contestants import stable_baselines

    return stable_baselines.solve(settings, total_steps, seed)


def solving(settings, *, seeds, total_steps):
    """Solve CartPole from each seed.

    Returns:
        (seconds of each contestant, environment steps of each that solved it).
    """
    iterations = total_steps // (settings.envs * settings.steps)
    makers = {LIBRARY: library_solving, DISPATCH: bare_solving}
    seconds, steps = {}, {}

    def clocked(name, solve, seed):
        taken = []
        seconds.setdefault(name, []).append(_measuring.timed(lambda: taken.append(solve(seed))))
        steps.setdefault(name, []).append(taken[0])

    for seed in range(seeds):
        for name, make in makers.items():
            solve = make(settings, iterations)
            clocked(f"{name}, compilation included", solve, seed)
            clocked(name, solve, seed)
        if has_peer():
            whole = iterations * settings.envs * settings.steps
            clocked(PEER, functools.partial(solve_with_peer, settings, whole), seed)
    return seconds, steps


def compare(name, samples):
    """Return the ratios of steps per second, and hold the library to the bars."""
    fastest = max((DISPATCH, SCAN), key=lambda entrant: np.median(samples[entrant]))
    ratios = {f"library / {other}": (LIBRARY, other) for other in samples if other != LIBRARY}
    ratios |= {f"{one} / fastest bare": (one, fastest) for one in (LIBRARY, REPEATED)}
    ratios[f"{REPEATED} / {SCAN}"] = REPEATED, SCAN
    found = {
        what: _measuring.ratio(samples[one], samples[other])
        for what, (one, other) in ratios.items()
    }
    least = {
        f"{LIBRARY} / fastest bare": 0.95,
        f"{REPEATED} / {SCAN}": 0.95 if "8 env" in name else 0.97,
    }
    bars = [
        _measuring.bar(f"{name}: {what}", found[what]["median"], least=limit)
        for what, limit in least.items()
        if what in found
    ]
    return found, bars


def race(settings_of, *, rounds, seconds):
    """Measure and print each entrant's throughput, and give (measured, ratios, bars)."""
    measured, ratios, bars = {}, {}, []
    for name, settings in settings_of.items():
        samples = throughput(settings, rounds=rounds, seconds=seconds)
        measured[name] = {entrant: _measuring.spread(f) for entrant, f in samples.items()}
        ratios[name], held = compare(name, samples)
        bars += held
        rows = [(e, *_measuring.columns(figures)) for e, figures in measured[name].items()]
        _measuring.show(f"{name}: environment steps per second", ("", "median", "quartiles"), rows)
        rows = [(what, *_measuring.columns(figures)) for what, figures in ratios[name].items()]
        _measuring.show(f"{name}: ratios", ("", "median", "quartiles"), rows)
    return measured, ratios, bars


def solve_all(settings, *, seeds, total_steps):
    """Solve CartPole from each seed, print it, and give (measured, how many solved it)."""
    taken, steps = solving(settings, seeds=seeds, total_steps=total_steps)
    measured = {entrant: _measuring.spread(figures) for entrant, figures in taken.items()}
    solved, rows = {}, []
    for entrant, figures in measured.items():
        reached = [count for count in steps[entrant] if count is not None]
        solved[entrant] = {"seeds": seeds, "solved": len(reached), "steps": steps[entrant]}
        median = f"{np.median(reached):,.0f}" if reached else "none"
        rows.append((entrant, *_measuring.columns(figures), f"{len(reached)} of {seeds}", median))
    titles = ("", "median", "quartiles", "seeds", "steps, median")
    _measuring.show("seconds to a mean return of 475 over 100 episodes", titles, rows)
    return {"seconds to a mean return of 475": measured}, solved


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    settings_of, rounds, seconds, seeds = SETTINGS, 11, 1.0, 10
    if options.gpu:
        settings_of, rounds, seconds = GPU, 5, 0.5
    if options.quick:
        settings_of, rounds, seconds, seeds = {"2 environments": QUICK}, 1, 0.0, 1
    measured, ratios, bars = race(settings_of, rounds=rounds, seconds=seconds)
    solved, notes = {}, []
    if not options.gpu:
        settings, total = (QUICK, 64) if options.quick else (SOLVING, TOTAL_STEPS)
        seconds_taken, solved = solve_all(settings, seeds=seeds, total_steps=total)
        measured |= seconds_taken
        if not has_peer():
            notes = [
                "Stable-Baselines3 is not installed and takes no part: pip install -e '.[peers]'"
            ]
    _measuring.finish(
        options,
        "ppo_throughput",
        unit="environment steps/s; seconds",
        warm_up="compilation, two iterations twice, a call and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        settings={name: settings._asdict() for name, settings in settings_of.items()},
        measured=measured,
        ratios=ratios,
        bars=bars,
        solved=solved,
        notes=notes,
    )


if __name__ == "__main__":
    main()
