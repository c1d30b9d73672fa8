"""An episode of the agent that `examples/gridworld.py` trained, from its recorded replay."""

import runpy
import tempfile
from pathlib import Path

import jax
import optax
from example_runs import ROOT, train
from PIL import Image

import hooks
import trainer
from trainer import rl
from trainer.rl import environments

EPISODES = 16
"""Of those that reached the goal, the one of median length is shown."""

SCALE, MILLISECONDS, PAUSE = 4, 160, 1600
"""Pixels for one of the environment's, and how long a frame and the last one are shown."""


def draw_replay(runs: Path, to: Path) -> None:
    """Write `replay.gif`: an episode of the last lesson."""
    train("gridworld", runs)
    example = runpy.run_path(str(ROOT / "examples" / "gridworld.py"))
    levels, lessons = environments.gridworld_levels(), example["LESSONS"]
    env = rl.lessons(environments.gridworld(), {name: levels[name] for name in lessons})
    network = example["build_policy"](env, example["Config"]().recurrent_size)
    state = rl.ppo(network, env, optax.identity()).init(jax.random.key(0))
    params = trainer.load_params(runs / "runs" / "gridworld", state.params)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"episodes": EPISODES, "lesson": lessons[-1], "greedy": False}
        hooks.record_replays(network, env, folder, **settings)(state.replace(params=params), {})
        replays = [rl.load_replay(file) for file in sorted(Path(folder).rglob("*.json"))]
    reached = sorted((one for one in replays if one.terminated), key=lambda one: one.length)
    shown = reached[len(reached) // 2]
    frames = [_enlarge(Image.fromarray(frame)) for frame in shown.frames(env)]
    times = [MILLISECONDS] * (len(frames) - 1) + [PAUSE]
    frames[0].save(
        to / "replay.gif", save_all=True, append_images=frames[1:], duration=times, loop=0
    )
    print(f"an episode of {shown.length} steps with a return of {shown.episode_return:.2f}")


def _enlarge(frame: Image.Image) -> Image.Image:
    size = frame.width * SCALE, frame.height * SCALE
    return frame.resize(size, Image.Resampling.NEAREST)
