"""Tokenizers as they come with weights, and what lies beside them."""

import sys

import pytest
from tokenizers import Tokenizer, processors

from trainer import data
from trainer.data.conversations.text_tokenizer import open_tokenizer

from .conftest import CHATML, talk


def open_it(tokenizer):
    return open_tokenizer(tokenizer, "data.chat")


def test_a_directory_and_its_file_are_the_same(model):
    folder = model("{{ messages }}")
    one, other = open_it(folder), open_it(str(folder / "tokenizer.json"))
    assert one._replace(encoder=None) == other._replace(encoder=None)
    assert (one.vocabulary, one.eos, one.template) == (260, 257, "{{ messages }}")
    assert one.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_bare_tokenizer_knows_neither_a_template_nor_special_tokens(tokenizer):
    opened = open_it(tokenizer)
    assert (opened.template, opened.special_tokens, opened.eos) == (None, None, None)
    assert opened.vocabulary == 260


def test_the_template_of_its_own_file_counts_first(model):
    folder = model("of the configuration")
    (folder / "chat_template.jinja").write_text("of its file")
    assert open_it(folder).template == "of its file"


def test_of_several_templates_the_default_one_is_read(model):
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert open_it(model(several)).template == "b"


def test_padding_truncation_and_trimmed_offsets_are_left_out(tokenizer):
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.enable_padding(length=50)
    changed.enable_truncation(2)
    changed.post_processor = processors.ByteLevel(trim_offsets=True)
    encoded = open_it(changed).encoder.encode("a \n b")
    assert encoded.offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert changed.padding["length"] == 50  # the user's is unchanged


def test_special_tokens_that_begin_a_text_are_found(tokenizer):
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single="<s> <|im_start|> $A </s>",
        special_tokens=[("<s>", 256), ("</s>", 257), ("<|im_start|>", 258)],
    )
    assert open_it(changed).before == (256, 258)
    assert open_it(tokenizer).before == ()


def test_what_is_no_tokenizer_is_an_error(model, tmp_path):
    class Fast:
        backend_tokenizer = None

    with pytest.raises(TypeError, match="got 3$"):
        open_it(3)
    with pytest.raises(TypeError, match="got a Fast: pass tokenizer.backend_tokenizer"):
        open_it(Fast())
    with pytest.raises(FileNotFoundError, match="needs a tokenizer.json in .* there is none"):
        open_it(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a tokenizer of the library tokenizers"):
        open_it(tmp_path)
    (tmp_path / "tokenizer.json").write_text("\x00")
    with pytest.raises(ValueError, match="tokenizer.json must be JSON"):
        open_it(tmp_path)
    with pytest.raises(ValueError, match="names eos_token '<end>', which .* does not know"):
        open_it(model(eos_token="<end>"))
    with pytest.raises(ValueError, match="chat_template of .* must be a text; got 3"):
        open_it(model(3))


@pytest.mark.parametrize("library", ["tokenizers", "jinja2"])
def test_a_missing_library_is_named_with_its_extra(lines, tokenizer, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    file = lines({"messages": talk("a", "b")})
    with pytest.raises(ImportError) as raised:
        data.chat(file, tokenizer, batch_size=1, length=40, template=CHATML)
    assert 'pip install "entracte[language]"' in "".join(raised.value.__notes__)
