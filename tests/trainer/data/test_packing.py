"""Files of tokens: they are read back completely, or not at all."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import data
from trainer.data.packing import HEADER, open_token_file


@pytest.fixture
def file(tmp_path):
    return tmp_path / "text.tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


def letters(text):
    return [ord(letter) for letter in text]


@given(st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=9).filter(any))
def test_written_tokens_are_read_back(folder, texts):
    file = folder / "any.tokens"
    assert data.pack_tokens(texts, file, vocabulary=300) == sum(map(len, texts))
    tokens, header = open_token_file(file)
    assert tokens.tolist() == [token for text in texts for token in text]
    assert (header.vocabulary, header.tokens) == (300, len(tokens))
    assert [path.name for path in folder.iterdir()] == ["any.tokens"]


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")],
)
def test_tokens_take_as_few_bytes_as_the_vocabulary_allows(file, vocabulary, dtype):
    data.pack_tokens([[0, vocabulary - 1]], file, vocabulary=vocabulary)
    tokens, header = open_token_file(file)
    assert tokens.tolist() == [0, vocabulary - 1]
    assert header.dtype == tokens.dtype.name == dtype
    assert file.stat().st_size == HEADER + 2 * tokens.itemsize


def test_texts_are_encoded_one_at_a_time(file):
    taken = []

    def texts():
        for text in ("abc", "", "de"):
            taken.append(text)
            yield text

    def encode(text):
        assert taken[-1] == text
        return np.array(letters(text), np.int64)

    assert data.pack_tokens(texts(), file, vocabulary=128, encode=encode) == 5
    assert open_token_file(file)[0].tobytes() == b"abcde"


@pytest.mark.parametrize(
    ("texts", "encode", "error", "said"),
    [
        ([[0, 1], [2, 10]], None, ValueError, "from 0 to 9.* text 1 has tokens from 2 to 10"),
        ([[3, -1]], None, ValueError, "text 0 has tokens from -1 to 3"),
        (["b"], letters, ValueError, "text 0 has tokens from 98 to 98"),
        ([], None, ValueError, "at least one token"),
        ([[], []], None, ValueError, "at least one token"),
        ([[0.5]], None, TypeError, r"text 0 must be integers .* got float64\[1\]"),
        ([[[1, 2]]], None, TypeError, r"text 0 must be integers .* got int64\[1, 2\]"),
        (["abc"], None, TypeError, "text 0 must be integers .* pass encode"),
        ("abc", letters, TypeError, r"a single text: pass \[text\]"),
    ],
)
def test_bad_texts_are_errors_and_leave_no_file(file, texts, encode, error, said):
    data.pack_tokens([[1, 2]], file, vocabulary=10)
    with pytest.raises(error, match=said):
        data.pack_tokens(texts, file, vocabulary=10, encode=encode)
    assert open_token_file(file)[0].tolist() == [1, 2]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("vocabulary", [0, 2**31 + 1])
def test_a_vocabulary_must_fit_a_token(file, vocabulary):
    with pytest.raises(
        ValueError, match=f"vocabulary must be from 1 to 2147483648; got {vocabulary}"
    ):
        data.pack_tokens([[0]], file, vocabulary=vocabulary)


def damaged(content, how):
    """Damage a file of ten tokens."""
    header = json.loads(content[:HEADER])
    if how == "empty":
        return b""
    if how == "cut":
        return content[:-1]
    if how == "longer":
        return content + b"\0"
    if how == "a bit":
        return content[:-3] + bytes([content[-3] ^ 4]) + content[-2:]
    if how == "a text":
        return b"to be or not to be" * 30
    if how == "a list":
        return b"[1, 2]".ljust(HEADER) + content[HEADER:]
    fields = {**header, **how}
    return json.dumps(fields).encode().ljust(HEADER - 1) + b"\n" + content[HEADER:]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("empty", "must be a file of tokens, as data.pack_tokens writes; it begins with b''"),
        ("a text", "must be a file of tokens.* begins with b'to be"),
        ("a list", "must be a file of tokens"),
        ("cut", "must have 266 bytes.* it has 265: it is damaged, pack it again"),
        ("longer", "must have 266 bytes.* it has 267"),
        ("a bit", "must have the checksum .* it is damaged, pack it again"),
        ({"vocabulary": 12}, "must have the checksum"),
        ({"tokens": 5}, "must have 261 bytes"),
        ({"tokens": "ten"}, "damaged header"),
        ({"tokens": -1}, "damaged header"),
        ({"dtype": "object"}, "damaged header"),
        ({"dtype": "uint16", "tokens": 5}, "must have the checksum"),
        ({"more": 1}, "must be a file of tokens"),
        ({"format": "entracte tokens 2"}, "format 'entracte tokens 1'; it has 'entracte tokens 2'"),
    ],
)
def test_damage_is_found_when_a_file_is_opened(file, how, said):
    data.pack_tokens([range(10)], file, vocabulary=10)
    file.write_bytes(damaged(file.read_bytes(), how))
    with pytest.raises(ValueError, match=said):
        open_token_file(file)


def test_all_blocks_are_verified(file, monkeypatch):
    monkeypatch.setattr("trainer.data.packing.BLOCK", 3)
    data.pack_tokens([range(10)], file, vocabulary=10)
    assert open_token_file(file)[0].tolist() == list(range(10))
    file.write_bytes(damaged(file.read_bytes(), "a bit"))
    with pytest.raises(ValueError, match="checksum"):
        open_token_file(file)
