import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.checkpoints import manifest, manifest_schema
from trainer.checkpoints.arrays import host_snapshot
from trainer.checkpoints.arrays.copied_arrays import CopiedArrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import flatten_state
from trainer.state import TrainState

SCALARS = [True, 0, -(2**80), 0.5, -0.0, float("inf"), float("nan"), "", "a\n", None]
SCALARS += [np.float32(1), np.bool_(1), np.int8(-3), np.complex64(1j), jnp.bfloat16(2)]
SCALARS += [np.float64("nan"), np.datetime64(3, "s"), np.timedelta64(3, "s"), np.longdouble(1)]
ARRAYS = [jnp.ones(3), jnp.zeros((0, 3)), jax.random.key(0), jnp.ones(3, jnp.int4)]
ARRAYS += [jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)), np.ones((2, 3), ">i4")]
ARRAYS += [np.array(["a", "bc"]), np.ones(()), np.ones(2, [("a", "i4"), ("b", "f8")])]


def whole(**changes):
    """A manifest of all that can be saved, as JSON gives it back."""
    state = TrainState.create(params=ARRAYS, rng=jax.random.key(0))
    state = state.replace(hook_state={"a/b": dict(enumerate(SCALARS)), "c": (), "d": [np.ones(5)]})
    sections, empty = flatten_state(state), np.empty(0, np.uint8)
    leaves, buffer = host_snapshot.copy_to_host(sections, empty, CopiedArrays())
    checked = {name: host_snapshot.add_checksums(group, buffer) for name, group in leaves.items()}
    scores = {"a": 0.5, "b": float("nan"), "c": -float("inf")}
    made = manifest.build_manifest(7, checked, scores=scores, config={"a": [1, None]})
    return json.loads(json.dumps(made)) | changes


def test_everything_that_can_be_saved_is_allowed():
    manifest_schema.check_manifest(whole())
    manifest_schema.check_manifest(whole(config=None, more="fields are for later versions"))
    rows = [{"grid": [2, 1], "processes": [0, 1], "paths": ["w"]}]
    manifest_schema.check_manifest(whole(holders=rows))


def test_an_older_manifest_may_lack_devices():
    older = whole()
    del older["devices"]
    manifest_schema.check_manifest(older)


def test_only_the_format_of_a_newer_manifest_is_checked():
    manifest_schema.check_manifest({"format": manifest.FORMAT + 1})


WRONG = {
    "format": [None, "1", 1.0, True, 0, -1],
    "epoch": [None, -1, 1.5, True, 2**63, "1"],
    "versions": [None, [], {"jax": 1}, {"jax": "\x1b[2J"}, {"jax": "x" * 10**4}],
    "devices": [1, ["cpu"], "\n"],
    "hooks": [None, [], ["a/b"], ["c", "a/b", "d"]],
    "scores": [None, [], {"a": None}, {"a": "much"}, {"a": [1]}, {"a": True}, {"a": 10**400}],
    "config": [[], "a", 1],
    "holders": [
        *(3, {}, [3], [{}], [{"grid": [2], "processes": [0, 1]}]),
        *(
            [{"grid": [1], "processes": [0], "paths": ["w"], **wrong}]
            for wrong in (
                *({"grid": 1}, {"grid": [-1]}, {"grid": [2]}, {"grid": [2**62, 2**62]}),
                *({"grid": [1] * 65}, {"grid": ["1"]}, {"processes": [-1]}, {"processes": [None]}),
                *({"processes": {}}, {"paths": "w"}, {"paths": [1]}, {"more": 1}),
            )
        ),
    ],
    "leaves": [None, [], {}, {"": None}, {"": [1]}, {"": [{}]}, {"": [], "other": []}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values]
)
def test_a_field_of_another_kind_is_damage(field, value):
    with pytest.raises(
        DamagedCheckpoint, match=f"its {field.removesuffix('s')}|its leaf|its section|its version"
    ):
        manifest_schema.check_manifest(whole(**{field: value}))


@pytest.mark.parametrize("field", ["format", "epoch", "versions", "hooks", "scores", "leaves"])
def test_a_missing_field_is_damage(field):
    content = whole()
    del content[field]
    with pytest.raises(DamagedCheckpoint, match=f"its {field} cannot be None"):
        manifest_schema.check_manifest(content)


@pytest.mark.parametrize("value", [10**5000, "x" * 10**6, [0] * 10**6], ids=["int", "str", "list"])
def test_a_message_is_short(value):
    with pytest.raises(DamagedCheckpoint) as error:
        manifest_schema.check_manifest(whole(epoch=value))
    assert len(str(error.value)) < 100
