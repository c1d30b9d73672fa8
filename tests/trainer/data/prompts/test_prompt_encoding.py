"""Prompts as tokens, by whichever tokenizer, and their padding."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from trainer import data
from trainer.data.prompts.left_padding import pad_prompts
from trainer.data.prompts.prompt_encoding import encode_prompt, encode_prompts, prepare_tokenizer
from trainer.data.prompts.stop_tokens import choose_stop

LETTERS = SimpleNamespace(
    encode=lambda text: SimpleNamespace(ids=[ord(x) - 97 for x in text]),
    decode=lambda ids: "".join(chr(97 + n) for n in ids),
)
ASKED = [{"role": "user", "content": "b"}]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}d{% endif %}c"


def make_tokenizer():
    """Return a tokenizer of letters that puts `a` before a text, as `<s>`."""
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate("abcd")}, []))
    made.add_special_tokens(["a"])
    made.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)])
    return made


def test_a_prompt_is_a_text_messages_or_tokens():
    tokenizer = data.open_tokenizer(make_tokenizer(), template=TEMPLATE)
    assert encode_prompt(tokenizer, "b", "who") == ("b", [0, 1])
    assert encode_prompt(tokenizer, "ab", "who") == ("ab", [0, 1])
    assert encode_prompt(tokenizer, ASKED, "who") == ("bc", [1, 2])
    assert encode_prompt(tokenizer, ASKED, "who", {"tools": ["f"]}) == ("bdc", [1, 3, 2])
    assert encode_prompt(tokenizer, [1, 2], "who") == ("b c", [1, 2])
    assert encode_prompt(LETTERS, "cb", "who") == ("cb", [2, 1])
    assert encode_prompt(LETTERS, np.array([2, 1]), "who") == ("cb", [2, 1])


def test_a_tokenizer_of_the_library_adds_no_special_token_twice(tmp_path):
    made = make_tokenizer()
    made.save(str(tmp_path / "tokenizer.json"))
    assert made.encode("ab").ids == [0, 0, 1]
    for given in (made, tmp_path, str(tmp_path)):
        assert encode_prompt(prepare_tokenizer(given, "who"), "ab", "who").tokens == [0, 1]
    assert prepare_tokenizer(LETTERS, "who") is LETTERS


@pytest.mark.parametrize(
    ("prompts", "error", "said"),
    [
        ("ab", TypeError, "who takes prompts as .* got 'ab'"),
        ([], ValueError, "needs at least one prompt"),
        ([""], ValueError, "needs at least one token; got ''"),
        ([[]], ValueError, "needs at least one token"),
        ([3.5], TypeError, "a text, a list of messages, or token ids; got 3.5"),
        ([["a", "b"]], TypeError, "or token ids; got a list of others"),
        (ASKED, TypeError, "got the messages of one: put them in a list"),
        ([ASKED], TypeError, "needs a tokenizer with a chat template; got a SimpleNamespace: pass"),
    ],
)
def test_what_is_no_prompt_is_an_error(prompts, error, said):
    with pytest.raises(error, match=said):
        encode_prompts(LETTERS, prompts, "who")


def test_what_is_no_tokenizer_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="who needs a tokenizer: .*a SimpleNamespace has no decode"):
        prepare_tokenizer(SimpleNamespace(encode=len), "who")
    with pytest.raises(FileNotFoundError, match="who needs a tokenizer.json in"):
        prepare_tokenizer(tmp_path, "who")


def test_padding_is_on_the_left():
    padded = pad_prompts([[5], [6, 7, 8]])
    assert padded["tokens"].tolist() == [[0, 0, 5], [6, 7, 8]]
    assert padded["lengths"].tolist() == [1, 3]
    assert {x.dtype.name for x in padded.values()} == {"int32"}


def test_stop_tokens_are_the_users_or_the_tokenizers(caplog):
    caplog.set_level(logging.INFO, "entracte")
    named = SimpleNamespace(stop=(2, 5))
    assert choose_stop(None, named, "who") == (2, 5)
    assert choose_stop([np.int64(3)], named, "who") == (3,)
    assert choose_stop((), named, "who") == ()
    assert caplog.text == ""
    assert choose_stop(None, LETTERS, "who") == ()
    assert "who: the tokenizer names no token that ends an answer" in caplog.text
