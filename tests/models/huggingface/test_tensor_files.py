"""Files of tensors, also those that a stranger made."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.huggingface import tensor_files
from models.huggingface.tensor_files import is_same, read_header, write_tensors

ARRAYS = {
    "matrix": np.arange(15, dtype=np.float32).reshape(5, 3),
    "vector": np.arange(7, dtype=np.float16),
    "small": np.arange(6, dtype=np.float32).reshape(2, 3).astype(jnp.bfloat16),
}
EVERYTHING = slice(None)


def write(file, arrays):
    kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write_tensors(file, kinds, arrays.__getitem__)


def read(stored, shape, dtype=np.float32, rows=EVERYTHING, columns=EVERYTHING, transposed=False):
    out = np.full(shape, np.nan, dtype)
    stored.read_into(out, rows, columns, transposed=transposed)
    return out


def test_files_are_those_of_the_safetensors_library_in_both_directions(tmp_path):
    write(tmp_path / "ours", ARRAYS)
    save_file(ARRAYS, tmp_path / "theirs")
    theirs = load_file(tmp_path / "ours")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)
        stored = read_header(tmp_path / "theirs")[name]
        np.testing.assert_array_equal(read(stored, array.shape, array.dtype), array)


@pytest.mark.parametrize("piece", [1, 24, 1 << 20])
def test_parts_are_read_transposed_and_cast_whatever_the_size_of_a_piece(
    tmp_path, monkeypatch, piece
):
    monkeypatch.setattr(tensor_files, "PIECE", piece)
    write(tmp_path / "file", ARRAYS)
    stored = read_header(tmp_path / "file")
    matrix = ARRAYS["matrix"]
    part = read(stored["matrix"], (3, 2), np.float64, slice(1, 4), slice(1, 3))
    np.testing.assert_array_equal(part, matrix[1:4, 1:3])
    part = read(stored["matrix"], (2, 3), jnp.bfloat16, slice(1, 4), slice(1, 3), transposed=True)
    np.testing.assert_array_equal(part, matrix[1:4, 1:3].T.astype(jnp.bfloat16))
    np.testing.assert_array_equal(read(stored["vector"], (3,), rows=slice(2, 5)), [2, 3, 4])


def test_tensors_are_the_same_if_their_bytes_are(tmp_path):
    other = {"matrix": ARRAYS["matrix"].copy(), "turned": ARRAYS["matrix"].reshape(3, 5)}
    other["matrix"][4, 2] += 1
    write(tmp_path / "one", ARRAYS)
    write(tmp_path / "other", other)
    one, other = read_header(tmp_path / "one"), read_header(tmp_path / "other")
    assert is_same(one["matrix"], one["matrix"])
    assert not is_same(one["matrix"], other["matrix"])
    assert not is_same(one["matrix"], other["turned"])


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HEADERS = {
    "no object": [],
    "entry is a list": {"w": [1]},
    "size of another shape": {"w": ENTRY | {"shape": [2, 3]}},
    "negative sizes": {"w": ENTRY | {"shape": [-2, -2]}},
    "flag as a size": {"w": ENTRY | {"shape": [True, 4]}},
    "huge sizes": {"w": ENTRY | {"shape": [1 << 62, 1 << 62]}},
    "ends before it starts": {"w": ENTRY | {"data_offsets": [16, 0]}},
    "starts past the end": {"w": ENTRY | {"data_offsets": [1 << 40, (1 << 40) + 16]}},
    "overlap": {"v": ENTRY, "w": ENTRY},
    "gap": {"w": ENTRY | {"shape": [1], "data_offsets": [12, 16]}},
    "rest": {"w": ENTRY | {"shape": [1], "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, name):
    text = json.dumps(HEADERS[name]).encode()
    file = tmp_path / "lies.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match="is no intact safetensors file"):
        read_header(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        (1 << 60).to_bytes(8, "little"),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (34).to_bytes(8, "little") + b'{"__metadata__": 1, "__metadata__"' + b": 1}",
        (26).to_bytes(8, "little") + b'{"a": 1, "a": 2, "b": NaN}',
    ],
)
def test_content_that_is_no_header_is_refused(tmp_path, content):
    file = tmp_path / "other.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is no intact safetensors file"):
        read_header(file)


def test_a_file_that_ends_early_is_refused(tmp_path):
    write(tmp_path / "file", ARRAYS)
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is no intact safetensors file"):
        read_header(tmp_path / "cut")


def test_integers_are_no_weights(tmp_path):
    with pytest.raises(TypeError, match="w is int32; cast it to one of float64, float32"):
        write_tensors(tmp_path / "file", {"w": (np.int32, (1,))}, np.zeros)
