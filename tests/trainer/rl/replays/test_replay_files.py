"""Replay files: they round-trip, and other files are refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rl.replays.replay import Replay
from trainer.rl.replays.replay_files import encode_replay, list_replay_files, load_replay

REPLAY = Replay(
    environment="maze",
    lesson=None,
    params=(np.array([0.1], np.float32), np.array([7, 8]), np.array([np.inf, np.nan, -np.inf])),
    seed=2**32 - 1,
    number=3,
    greedy=False,
    epoch=12,
    step=1200,
    actions=np.array([0, 1, 2], np.int32),
    rewards=np.array([0.0, -0.1, 1e-30], np.float32),
    terminated=True,
    truncated=False,
    checksum="0123456789abcdef",
)


def stored(folder, content):
    path = folder / "0-0.json"
    path.write_bytes(content)
    return path


def assert_equal(one, other):
    """Check that two replays have the same fields, bit for bit."""
    for field in dataclasses.fields(Replay):
        before, after = getattr(one, field.name), getattr(other, field.name)
        pairs = zip(before, after, strict=True) if field.name == "params" else [(before, after)]
        for left, right in pairs:
            np.testing.assert_array_equal(left, right)
            if isinstance(left, np.ndarray) and field.name != "params":
                assert left.dtype == right.dtype


def test_a_replay_round_trips(tmp_path):
    content = encode_replay(REPLAY)
    loaded = load_replay(stored(tmp_path, content))
    assert_equal(dataclasses.replace(REPLAY, params=()), dataclasses.replace(loaded, params=()))
    for before, after in zip(REPLAY.params, loaded.params, strict=True):
        np.testing.assert_array_equal(after.astype(before.dtype), before)
    assert encode_replay(loaded) == content
    assert loaded.episode_return == REPLAY.episode_return


def test_it_is_plain_json(tmp_path):
    found = json.loads(encode_replay(REPLAY), parse_constant=pytest.fail)
    assert found["format"] == "entracte replay"
    assert (found["length"], found["actions"]) == (3, [0, 1, 2])
    assert found["rewards"] == [0.0, -0.1, 1e-30]  # and not -0.10000000149011612
    assert found["return"] == pytest.approx(-0.1)
    assert found["params"][2] == ["inf", "nan", "-inf"]


@given(
    actions=st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2
        ),
        min_size=1,
    )
)
def test_numbers_round_trip_bit_for_bit(tmp_path_factory, actions):
    kept = np.array(actions, np.float32)
    replay = dataclasses.replace(REPLAY, actions=kept, rewards=kept[:, 0])
    loaded = load_replay(stored(tmp_path_factory.getbasetemp(), encode_replay(replay)))
    assert loaded.actions.tobytes() == kept.tobytes()
    assert loaded.rewards.tobytes() == kept[:, 0].tobytes()


def changed(**change):
    return json.dumps({**json.loads(encode_replay(REPLAY)), **change}).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (encode_replay(REPLAY)[:-20], "is no replay, or a damaged one"),
        (b"\xff\xfe{}", "decode"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "an object with the format 'entracte replay'"),
        (b'{"step": 28, "epoch": 1}', "an object with the format 'entracte replay'"),
        (changed(version=2), "its version must be 1; got 2"),
        (changed(seed=-1), "'seed' must be at least 0 and below 4294967296; got -1"),
        (changed(seed=10**400), "'seed' must be at least 0"),
        (changed(seed=True), "'seed' must be a whole number; got True"),
        (changed(epoch=1.5), "'epoch' must be a whole number; got 1.5"),
        (changed(length=4), "'rewards' must have the replay's 4 steps"),
        (changed(length=0, rewards=[], actions=[]), "at least 1"),
        (changed(rewards=[1, 2]), "'rewards' must have the replay's 3 steps"),
        (changed(rewards=[1, [2], 3]), "inhomogeneous|lists of one length"),
        (changed(rewards=[[1], [2], [3]]), "'rewards' must be one number a step"),
        (changed(rewards=[1, 2, "3"]), "'rewards' must be numbers"),
        (changed(rewards=[1, 2, None]), "'rewards' must be numbers"),
        (changed(rewards=[1.0, 2.0, 1e300]), "'rewards' must be numbers that fit 32 bits"),
        (changed(rewards=[1.0, 2.0, float("nan")]), "JSON has no number NaN"),
        (changed(actions=[0, 1, 2**40]), "'actions' must be numbers that fit 32 bits"),
        (changed(actions=[0, 1, {}]), "'actions' must be numbers"),
        (changed(actions="012"), "'actions' must be a list"),
        (changed(params=[1]), "'params' must be lists of numbers"),
        (changed(params=[["one"]]), "'params' must be numbers"),
        (changed(environment=None), "'environment' must be a name; got None"),
        (changed(lesson=3), "'lesson' must be a name or null; got 3"),
        (changed(terminated=1), "'terminated' must be true or false; got 1"),
        (changed(checksum=1), "'checksum' must be 16 hexadecimal digits"),
    ],
)
def test_other_content_is_refused_with_its_path(tmp_path, content, said):
    path = stored(tmp_path, content)
    with pytest.raises(ValueError, match="is no replay, or a damaged one") as raised:
        load_replay(path)
    assert raised.match(str(path))
    assert raised.match(said)


@pytest.mark.parametrize("name", list(json.loads(encode_replay(REPLAY))))
def test_only_the_return_may_be_missing(tmp_path, name):
    found = json.loads(encode_replay(REPLAY))
    del found[name]
    path = stored(tmp_path, json.dumps(found).encode())
    if name == "return":
        assert load_replay(path).episode_return == REPLAY.episode_return
    else:
        with pytest.raises(ValueError, match=name if name != "format" else "the format"):
            load_replay(path)


def test_a_missing_file_has_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_replay(tmp_path / "1-0.json")


def test_only_replay_files_are_listed(tmp_path):
    for name in ("10-0.gif", "9-12.json", "9-12.json.1.tmp", "x9-1.gif", "9.json", "9-1.png"):
        (tmp_path / name).touch()
    assert sorted(list_replay_files(tmp_path)) == [
        (9, tmp_path / "9-12.json"),
        (10, tmp_path / "10-0.gif"),
    ]
