import json
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoints import manifest
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import (
    Leaf,
    Piece,
    compare_leaves,
    decode_scalar,
    describe_leaf,
    flatten_section,
    flatten_state,
)
from trainer.state import TrainState


def bits(value):
    """What must not change about a scalar: its type and every bit."""
    if isinstance(value, np.generic):
        return value.dtype, value.tobytes()
    if isinstance(value, float):
        return float, b"nan" if math.isnan(value) else struct.pack("<d", value)
    return type(value), value


NUMPY_TYPES = [np.bool_, np.int8, np.uint64, np.float16, np.float32, np.float64, np.complex64]


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())))
def test_a_python_scalar_is_decoded_bit_for_bit(value):
    leaf = describe_leaf("x", value)
    assert bits(decode_scalar(Leaf(**json.loads(json.dumps(vars(leaf)))))) == bits(value)


@given(st.sampled_from([*NUMPY_TYPES, jnp.bfloat16]), st.binary(min_size=16, max_size=16))
def test_a_numpy_scalar_is_decoded_bit_for_bit(kind, content):
    value = np.frombuffer(content, np.bool_ if kind is np.bool_ else kind)[0]
    leaf = describe_leaf("x", value)
    assert bits(decode_scalar(Leaf(**json.loads(json.dumps(vars(leaf)))))) == bits(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool"),
        (1, "int"),
        (1.0, "float"),
        ("1", "str"),
        (None, "None"),
        (np.float64(1), "numpy.float64"),
        (np.ones(()), "float64[]"),
        (jnp.ones((2, 0), jnp.bfloat16), "bfloat16[2, 0]"),
        (jax.random.key(0), "key<fry>[]"),
    ],
)
def test_every_kind_of_leaf_has_its_own_name(value, kind):
    assert str(describe_leaf("x", value)) == kind


class Whole(int):
    pass


@pytest.mark.parametrize(
    "value",
    [print, object(), {1}, b"bytes", 1j, Whole(1), np.str_("a"), np.array([None]), np.ma.ones(2)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_restored_is_refused_by_path(value):
    with pytest.raises(TypeError, match="hook_state/mine/field is .*closure"):
        flatten_section("hook_state/mine", {"field": value})


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="share a path.*: hook_state/h/a/b"):
        flatten_section("hook_state/h", {"a": {"b": 1}, "a/b": 2})


def test_sections_are_the_state_and_each_hook_state():
    state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0)).replace(
        hook_state={"a/b": {"x": 1}, "c": ()}, scores={"val/loss": 1.0}
    )
    described = {
        name: [leaf.path for leaf in leaves]
        for name, (leaves, _, _) in flatten_state(state).items()
    }
    assert described == {
        "": ["step", "epoch", "params/w", "rng", "stop"],
        "hook_state/a/b": ["hook_state/a/b/x"],
        "hook_state/c": [],
    }


def test_differences_name_path_saved_and_wanted():
    saved = [Leaf("a", "int"), Leaf("b", "float32", (2,)), Leaf("c", "bool"), Leaf("d", "int")]
    wanted = [Leaf("a", "float"), Leaf("b", "bfloat16", (2,)), Leaf("d", "int"), Leaf("e", "str")]
    assert compare_leaves(saved, wanted) == [
        "a: saved int, wanted float",
        "b: saved float32[2], wanted bfloat16[2]",
        "c: saved bool, wanted nothing",
        "e: saved nothing, wanted str",
    ]


def composed(**changes):
    leaves = {
        "": [
            Leaf("w", "float32", (2,), 4, (Piece(0, ((0, 2),), "00ff" * 4),)),
            Leaf("n", "int", value="0x1"),
        ]
    }
    given = {"scores": {}, "config": {"a": 1}} | changes
    return manifest.build_manifest(7, leaves, **given)


def test_a_manifest_is_decoded_unchanged():
    whole = composed(scores={"loss": 0.1, "worst": math.inf})
    again = manifest.decode_manifest(manifest.encode_manifest(whole))
    assert again == json.loads(json.dumps(whole))
    assert manifest.parse_leaves(again) == manifest.parse_leaves(whole)
    assert manifest.parse_leaves(again)[""][0] == Leaf(
        "w", "float32", (2,), 4, (Piece(0, ((0, 2),), "00ff" * 4),)
    )
    assert manifest.parse_scores(again) == {"loss": 0.1, "worst": math.inf}
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= again["versions"].keys()


def test_versions_and_devices_are_compared_with_the_current_ones():
    now = composed()
    assert now["devices"] == f"{jax.device_count()} {jax.devices()[0].device_kind}"
    assert {"jax", "jaxlib"} <= now["versions"].keys()
    assert manifest.list_environment_changes(now) == []
    before = now | {"versions": now["versions"] | {"jaxlib": "0.0.1", "optax": "0.0.1"}}
    assert manifest.list_environment_changes(before) == [
        f"jaxlib: saved with 0.0.1, now {now['versions']['jaxlib']}"
    ]
    assert manifest.list_environment_changes(before | {"versions": {}, "devices": None}) == []


def test_devices_are_counted_by_kind(monkeypatch):
    kinds = ["b", "a", "b"]
    devices = [type("Device", (), {"device_kind": kind}) for kind in kinds]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert manifest.describe_devices() == "1 a, 2 b"


@pytest.mark.parametrize("body", ["[]", "3", '{"a": NaN', "{", "[" * 10**5, '{"a": 1} {}'])
def test_a_manifest_that_is_no_json_object_is_damaged(body):
    content = manifest.encode_manifest({"a": 1})
    body = body.encode() + b"}\n"
    digest = manifest.xxhash.xxh3_64_hexdigest(body).encode()
    start = content.index(b'", "manifest": ')
    with pytest.raises(DamagedCheckpoint, match="no JSON"):
        manifest.decode_manifest(
            content[: start - 16] + digest + content[start : start + 15] + body
        )


def test_the_file_of_a_manifest_is_plain_json():
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(
        manifest.encode_manifest(composed(scores={"loss": math.nan})), parse_constant=refuse
    )
    assert content["manifest"]["scores"] == {"loss": "nan"}


def test_every_flipped_bit_of_a_manifest_is_noticed():
    content = manifest.encode_manifest(composed())
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(DamagedCheckpoint):
            manifest.decode_manifest(bytes(flipped))


@pytest.mark.parametrize("length", [0, 1, 40, 200])
def test_a_truncated_manifest_is_noticed(length):
    with pytest.raises(DamagedCheckpoint):
        manifest.decode_manifest(manifest.encode_manifest(composed())[:length])
