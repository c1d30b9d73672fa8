"""Replays: what the policy does, as animations to look at and files to make them again from."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hooks.combining import Chain, chain
from hooks.metric_logging import check_writers, read_step_epoch, resume_writers, write_values
from hooks.writers.images import check_pillow, encode_gif
from hooks.writers.values import Value, Video
from hooks.writers.writer import Writer
from trainer import TrainState
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace
from trainer.host.folders import make_folder
from trainer.rl.environments.environment import Environment
from trainer.rl.episodes import make_episode_player
from trainer.rl.replay_files import encode_replay, list_replay_files
from trainer.rl.replays import make_replayer

log = logging.getLogger("entracte")


def record_replays(
    network: Any,
    env: Environment,
    directory: str | os.PathLike[str],
    *writers: Writer,
    episodes: int = 1,
    lesson: str | None = None,
    greedy: bool = True,
    max_steps: int = 1000,
    seed: int = 0,
    fps: float = 20,
    keep: int | None = None,
) -> Chain:
    """Play episodes with the policy of the epoch, and keep them as animations and as data.

    In `<directory>/replays`, `<epoch>-<episode>.gif` shows an episode, and the `.json` beside it
    is a `Replay`, which `load_replay` reads. Writers are given the episode as a `Video`;
    TensorBoard shows it, others pass over it. Give it a period, `every(10, record_replays(...))`.

    The policy plays as in training: normalised, and with its memory where it has one. All that is
    random comes from the seed, so that the same state gives the same file, and episodes of
    different epochs begin alike. Training is left as it is. Where a run begins or goes on, files of
    later epochs, which an earlier run left, are removed.

    Args:
        network: of the policy, as given to `ppo`.
        env: to play in, as given to `ppo`; where it cannot be drawn, there is only the JSON.
        directory: of the run. Two of these hooks need directories of their own.
        writers: those of `log_metrics` or others. Behind `background` they must be its own.
        episodes: to play each time.
        lesson: one of `env.lessons` to play; drawn by the weights in `env.params` if None.
        greedy: choose the likeliest action; False draws it.
        max_steps: after which an episode is left. The frames of a whole one are in memory.
        seed: from 0 to 2**32 - 1.
        fps: frames a second, at most 50: about 5 where every step is to be followed.
        keep: of how many epochs to keep files, the newest; None keeps all.

    Raises:
        ImportError: Pillow is not installed.
        OSError: the directory cannot be written to.
        TypeError: something is no writer, or the environment none of pure functions.
        ValueError: the network does not fit the environment, or a setting is out of its range; when
            it plays, an action or a reward is not finite.

    >>> import tempfile
    >>> import models
    >>> from trainer.rl.environments import cartpole
    >>> network = models.actor_critic(actions=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(record_replays(network, cartpole(), folder, episodes=2))
    event  stage    hook                  reads  writes
    start  observe  record_replays/start
    epoch  observe  record_replays
    """
    _check_settings(episodes=episodes, seed=seed, keep=keep)
    check_writers("record_replays", writers)
    play = make_episode_player(network, env, lesson=lesson, greedy=greedy, max_steps=max_steps)
    draw = None
    if env.render is None:
        log.warning("environment %r has no render: its replays are JSON alone", env.name)
        writers = ()
    else:
        check_pillow("record_replays")
        Video(np.zeros((1, 1, 1, 3), np.uint8), fps)
        draw = make_replayer(env, env.render)
    folder = to_absolute_path(directory, "record_replays") / "replays"
    make_folder(folder, "record_replays")
    tag = "replays" if lesson is None else f"replays/{lesson}"
    name = "record_replays" if lesson is None else f"record_replays/{lesson}"

    def played(keeping: Callable[[str, bytes], None]) -> Callable[..., dict[str, Value]]:
        def values(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Value]:
            shown: dict[str, Value] = {}
            for number in range(episodes):
                replay = play(state, seed, number)
                if draw:
                    video = Video(draw(replay), fps)
                    keeping(f"{replay.epoch}-{number}.gif", encode_gif(video))
                    shown[f"{tag}/{number}"] = video
                keeping(f"{replay.epoch}-{number}.json", encode_replay(replay))
            return shown

        return values

    def store(file: str, content: bytes) -> None:
        with atomic_replace(folder / file) as beside:
            beside.write_bytes(content)

    def record(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Value]:
        shown = played(store)(state, metrics)
        if keep is not None:
            newest = sorted({epoch for epoch, _ in list_replay_files(folder)})[-keep:]
            _remove(folder, lambda epoch: epoch < newest[0])
        return shown

    resume = resume_writers(name, writers)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        since = read_step_epoch(state)[1]
        if gone := _remove(folder, lambda epoch: epoch > since or not since):
            log.warning("%s: removing %d files beyond epoch %d", folder, gone, since)
        return resume.function(state, metrics)

    rehearsed = write_values(name, writers, played(lambda file, content: None))
    return chain(
        dataclasses.replace(resume, function=begin),
        dataclasses.replace(write_values(name, writers, record), dry_run=rehearsed.dry_run),
    )


def _remove(folder: Path, superseded: Callable[[int], bool]) -> int:
    gone = [path for epoch, path in list_replay_files(folder) if superseded(epoch)]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def _check_settings(*, episodes: int, seed: int, keep: int | None) -> None:
    for name, value, low, high in (
        ("episodes", episodes, 1, 2**31),
        ("seed", seed, 0, 2**32),
        ("keep", 1 if keep is None else keep, 1, 2**31),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
            raise ValueError(
                f"record_replays needs {name} as a whole number of at least {low} and below "
                f"{high}; got {value!r}"
            )
