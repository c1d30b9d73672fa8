"""record_replays: episodes of the policy in files and writers."""

import io
import json
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hooks
import trainer
from hooks import recording_replays
from hooks.recording_replays import record_replays
from hooks.testing import check_hook
from trainer import rl
from trainer.rl.curriculum import lessons
from trainer.rl.environments import Box, Discrete, Environment, TimeStep

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def apply(params, model_state, x, *, key, train):
    """Stop if the number is above the first parameter, which training halves."""
    logits = jnp.stack([jnp.full(len(x), jnp.abs(params["w"]).sum()), x[:, 0]], axis=-1)
    return {"logits": 100 * logits, "value": x[:, 0]}, model_state


NETWORK = SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros(2)}, {}), apply=apply)


def reset(key, params):
    number = jax.random.uniform(key)
    return (number, jnp.int32(0)), number[None]


def step(key, state, action, params):
    number, time = jax.random.uniform(key), state[1] + 1
    return TimeStep((number, time), number[None], number, action == 1, time >= params)


def render(state, params):
    bar = jnp.arange(8)[:, None, None] < 8 * state[0]
    return jnp.broadcast_to(jnp.where(bar, 255, 0), (8, 8, 3)).astype(jnp.uint8)


DICE = Environment("dice", reset, step, Box((1,)), Discrete(2), jnp.int32(10), render=render)


COMPILED = {}
"""Functions by objects and settings; it keeps the objects, so that their ids are not reused."""


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    """Share compiled functions: each run would compile its own."""

    def shared(make):
        def share(*given, **settings):
            key = make.__name__, *map(id, given), *settings.items()
            if key not in COMPILED:
                COMPILED[key] = make(*given, **settings), given
            return COMPILED[key][0]

        return share

    for name in ("make_episode_runner", "make_replayer"):
        monkeypatch.setattr(recording_replays, name, shared(getattr(recording_replays, name)))


def names(folder):
    return sorted(path.name for path in (folder / "replays").iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "replays").iterdir()}


@pytest.fixture
def recorded(tmp_path, recorder):
    """A hook over two episodes, its folder and its writer."""
    folder = tmp_path / "run"
    return record_replays(NETWORK, DICE, folder, recorder, episodes=2, seed=4), folder, recorder


def test_files_and_videos_are_of_the_same_episode(recorded, state):
    hook, folder, recorder = recorded
    assert hook(state.replace(epoch=jnp.int32(7), step=jnp.int32(70)), {}).scores == {}
    assert names(folder) == ["7-0.gif", "7-0.json", "7-1.gif", "7-1.json"]
    (at, values), *_ = recorder.written
    assert (at, list(values)) == (70, ["epoch", "replays/0", "replays/1"])
    for number in (0, 1):
        replay = rl.load_replay(folder / "replays" / f"7-{number}.json")
        assert (replay.epoch, replay.step, replay.seed, replay.number) == (7, 70, 4, number)
        video = values[f"replays/{number}"]
        np.testing.assert_array_equal(video.frames, replay.frames(DICE))
        with PIL.Image.open(folder / "replays" / f"7-{number}.gif") as gif:
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), video.frames[0])


def test_the_same_state_and_seed_produce_the_same_bytes(recorded, state, tmp_path):
    hook, folder, _ = recorded
    hook(state, {})
    record_replays(NETWORK, DICE, tmp_path, episodes=2, seed=4)(
        state.replace(rng=jax.random.key(5)), {}
    )
    for name, content in contents(tmp_path).items():
        assert content == contents(folder)[name]
    assert contents(tmp_path)["0-0.json"] != contents(tmp_path)["0-1.json"]
    record_replays(NETWORK, DICE, tmp_path, seed=5)(state, {})
    assert contents(tmp_path)["0-0.json"] != contents(folder)["0-0.json"]


def test_it_holds_the_laws(state, tmp_path):
    check_hook(record_replays(NETWORK, DICE, tmp_path, hooks.TensorBoard(tmp_path)), state, {})


def test_training_does_not_change(state, phase, tmp_path):
    bare, _ = trainer.fit(state, phase, epochs=4)
    hook = hooks.every(2, record_replays(NETWORK, DICE, tmp_path, greedy=False))
    seen, _ = trainer.fit(state, phase, epochs=4, hooks=hook)
    assert trainer.fingerprint(seen) == trainer.fingerprint(bare)
    assert names(tmp_path) == ["2-0.gif", "2-0.json", "4-0.gif", "4-0.json"]


def test_a_resumed_run_has_the_files_of_an_uninterrupted_one(state, phase, tmp_path):
    def run(folder, epochs):
        made = [
            record_replays(NETWORK, DICE, folder),
            hooks.save_checkpoints(folder, max_cost=None),
        ]
        return trainer.fit(state, phase, epochs=epochs, hooks=made)

    run(tmp_path / "whole", 3)
    run(tmp_path / "part", 2)
    for later in ("3-0.json", "9-0.gif"):  # written before a crash, but never saved
        (tmp_path / "part" / "replays" / later).write_text("of a lost epoch")
    run(tmp_path / "part", 3)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_fresh_run_removes_only_files_of_an_earlier_one(state, phase, tmp_path, caplog):
    hook = record_replays(NETWORK, DICE, tmp_path)
    trainer.fit(state, phase, epochs=3, hooks=hook)
    (tmp_path / "replays" / "3-0-copy.gif").touch()
    with caplog.at_level(logging.WARNING):
        trainer.fit(state, phase, epochs=1, hooks=hook)
    assert names(tmp_path) == ["1-0.gif", "1-0.json", "3-0-copy.gif"]
    assert "removing 6 files beyond epoch 0" in caplog.text


def test_only_the_newest_are_kept_if_requested(state, phase, tmp_path):
    hook = hooks.every(2, record_replays(NETWORK, DICE, tmp_path, keep=2))
    trainer.fit(state, phase, epochs=11, hooks=hook)
    assert names(tmp_path) == ["10-0.gif", "10-0.json", "8-0.gif", "8-0.json"]


def test_tensorboard_shows_an_animation(state, tmp_path):
    board = hooks.TensorBoard(tmp_path)
    record_replays(NETWORK, DICE, tmp_path, board)(state, {})
    board.close()
    (shown,) = EventAccumulator(str(tmp_path)).Reload().Images("replays/0")
    assert shown.encoded_image_string == (tmp_path / "replays" / "0-0.gif").read_bytes()
    assert (shown.height, shown.width) == (8, 8)
    assert PIL.Image.open(io.BytesIO(shown.encoded_image_string)).is_animated


def test_other_writers_skip_it(state, tmp_path, capsys):
    lines = hooks.JsonLines(tmp_path / "lines.jsonl")
    record_replays(NETWORK, DICE, tmp_path, lines, hooks.Console())(state, {})
    lines.close()
    assert json.loads(lines.path.read_text()) == {"step": 0, "epoch": 0}


def test_an_environment_without_render_has_only_json_and_logs_it_once(
    state, phase, tmp_path, caplog, recorder
):
    with caplog.at_level(logging.WARNING):
        hook = record_replays(NETWORK, DICE._replace(render=None), tmp_path, recorder)
        trainer.fit(state, phase, epochs=2, hooks=hook)
    assert names(tmp_path) == ["1-0.json", "2-0.json"]
    assert caplog.text.count("has no render: its replays are saved as JSON only") == 1
    assert recorder.written == []


def test_external_names_are_not_used_in_file_names(state, tmp_path):
    hostile = "..\\..\\x y\0\u202e"
    env = lessons(DICE._replace(name="../../etc/x"), {hostile: jnp.int32(2), "b": jnp.int32(3)})
    hook = record_replays(NETWORK, env, tmp_path, hooks.TensorBoard(tmp_path), lesson=hostile)
    trainer.fit(state, trainer.Phase("train", lambda s, d: (s, None, {})), epochs=1, hooks=hook)
    assert names(tmp_path) == ["1-0.gif", "1-0.json"]
    loaded = rl.load_replay(tmp_path / "replays" / "1-0.json")
    assert (loaded.environment, loaded.lesson) == ("../../etc/x", hostile)


def test_a_dry_run_plays_and_leaves_nothing(state, phase, tmp_path):
    board = hooks.TensorBoard(tmp_path)
    broken = DICE._replace(render=lambda state, params: jnp.zeros((8, 8), jnp.uint8))
    with pytest.raises(ValueError, match="frames must be"):
        trainer.fit(
            state, phase, epochs=1, hooks=record_replays(NETWORK, broken, tmp_path), dry_run=True
        )
    assert names(tmp_path) == []
    hook = hooks.every(2, record_replays(NETWORK, DICE, tmp_path, board))
    trainer.fit(state, phase, epochs=1, hooks=hook, dry_run=True)
    assert names(tmp_path) == []


def test_it_runs_in_the_background_and_is_set_by_its_name(state, phase, tmp_path):
    replays = {"network": "policy", "env": "dice", "directory": str(tmp_path), "episodes": 2}
    spec = [{"background": {"hook": {"record_replays": replays}}}]
    hook = hooks.from_config(spec, given={"policy": NETWORK, "dice": DICE})
    trainer.fit(state, phase, epochs=1, hooks=hook)
    assert names(tmp_path) == ["1-0.gif", "1-0.json", "1-1.gif", "1-1.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"episodes": 0}, "episodes as a whole number of at least 1 and below 2147483648; got 0"),
        ({"seed": -1}, "seed as a whole number of at least 0"),
        ({"seed": 2**32}, "seed as a whole number"),
        ({"keep": 0}, "keep as a whole number of at least 1"),
        ({"fps": 51}, "fps must be above 0 and at most 50"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"lesson": "hard"}, "no lesson 'hard'"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        record_replays(NETWORK, DICE, tmp_path, **change)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        record_replays(NETWORK, DICE, tmp_path / "file")
    assert "record_replays cannot write to the folder" in raised.value.__notes__[0]
