"""Record replays: episodes of the policy, as animations and as files that can be drawn again."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hooks.combining import Chain, chain
from hooks.metric_logging import check_writers, resume_writers, write_values
from hooks.writers.images import encode_gif, import_pillow
from hooks.writers.values import Value, Video
from hooks.writers.writer import Writer
from trainer import TrainState
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace
from trainer.host.folders import make_folder
from trainer.rl.environments.environment import Environment
from trainer.rl.replays.episodes import make_episode_runner
from trainer.rl.replays.replay import make_replayer
from trainer.rl.replays.replay_files import encode_replay, list_replay_files
from trainer.state import read_epoch

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
    """Play episodes with the policy of the epoch, and save them as animations and as data.

    In `<directory>/replays`, `<epoch>-<episode>.gif` shows an episode, and the `.json` beside it
    is a `Replay`, which `trainer.rl.load_replay` reads. Writers get the episode as a `Video`;
    TensorBoard shows it, others skip it. Use it with a period, `every(10, record_replays(...))`.

    The policy plays as in training: with normalized observations, and with its recurrent state if
    it has one. All random numbers come from the seed, so that episodes of different epochs begin
    alike. When a run starts or resumes, files of later epochs are removed.

    Args:
        network: of the policy, as for `ppo`.
        env: to play in, as for `ppo`; if it cannot be drawn, only the JSON is saved.
        directory: of the run. Two of these hooks need separate directories.
        writers: those of `log_metrics` or others. In `background` no other hook may use them.
        episodes: to play each time.
        lesson: one of `env.lessons` to play; if None, drawn by the weights in `env.params`.
        greedy: choose the likeliest action; False samples it.
        max_steps: after which an episode is stopped. All frames of an episode are in memory.
        seed: from 0 to 2**32 - 1.
        fps: frames per second, at most 50; about 5 shows every step clearly.
        keep: number of newest epochs whose files to keep; None keeps all.

    Raises:
        ImportError: Pillow is not installed.
        OSError: the directory cannot be written to.
        TypeError: an argument is no writer, or the environment does not consist of pure functions.
        ValueError: the network does not fit the environment, or a setting is out of range; when it
            plays, an action or a reward is not finite.

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
    play = make_episode_runner(network, env, lesson=lesson, greedy=greedy, max_steps=max_steps)
    draw = None
    if env.render is None:
        log.warning("environment %r has no render: its replays are saved as JSON only", env.name)
        writers = ()
    else:
        import_pillow("record_replays")
        Video(np.zeros((1, 1, 1, 3), np.uint8), fps)
        draw = make_replayer(env, env.render)
    folder = to_absolute_path(directory, "record_replays") / "replays"
    make_folder(folder, "record_replays")
    tag = "replays" if lesson is None else f"replays/{lesson}"
    name = "record_replays" if lesson is None else f"record_replays/{lesson}"

    def play_all(state: TrainState, save: Callable[[str, bytes], None]) -> dict[str, Value]:
        videos: dict[str, Value] = {}
        for number in range(episodes):
            replay = play(state, seed, number)
            if draw:
                video = Video(draw(replay), fps)
                save(f"{replay.epoch}-{number}.gif", encode_gif(video))
                videos[f"{tag}/{number}"] = video
            save(f"{replay.epoch}-{number}.json", encode_replay(replay))
        return videos

    def save_file(file: str, content: bytes) -> None:
        with atomic_replace(folder / file) as beside:
            beside.write_bytes(content)

    def record(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Value]:
        videos = play_all(state, save_file)
        if keep is not None:
            newest = sorted({epoch for epoch, _ in list_replay_files(folder)})[-keep:]
            _remove(folder, lambda epoch: epoch < newest[0])
        return videos

    resume = resume_writers(name, writers)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        since = read_epoch(state)
        if removed := _remove(folder, lambda epoch: epoch > since or not since):
            log.warning("%s: removing %d files beyond epoch %d", folder, removed, since)
        return resume.function(state, metrics)

    trial = write_values(
        name, writers, lambda state, metrics: play_all(state, lambda file, content: None)
    )
    return chain(
        dataclasses.replace(resume, function=begin),
        dataclasses.replace(
            write_values(name, writers, record),
            dry_run=trial.dry_run,
            gather=("params", "model_state"),
        ),
    )


def _remove(folder: Path, superseded: Callable[[int], bool]) -> int:
    """Remove the files of superseded epochs, and return how many there were."""
    files = [path for epoch, path in list_replay_files(folder) if superseded(epoch)]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


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
