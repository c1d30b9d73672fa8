"""Tokenizers as they come with weights, and what lies beside them."""

import json
import sys

import pytest
from tokenizers import Tokenizer, processors

from trainer import data
from trainer.data.conversations.opening_tokenizers import read_tokenizer

from .conftest import CHATML, HEADED, MARKED, REASONING, talk


def open_it(tokenizer):
    return read_tokenizer(tokenizer, "data.chat")


def write(opened):
    return opened.render_prompt(talk("a"))


def test_a_directory_and_its_file_are_the_same(model):
    folder = model("{{ messages }}")
    one, other = open_it(folder), open_it(str(folder / "tokenizer.json"))
    assert (one.name, one.encode("ab"), one.stop) == (other.name, other.encode("ab"), other.stop)
    assert (one.vocabulary, one.eos, one.stop) == (260, 257, (257,))
    assert one.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_bare_tokenizer_knows_neither_a_template_nor_special_tokens(tokenizer):
    opened = open_it(tokenizer)
    assert (opened.template, opened.special_tokens, opened.stop) == (None, None, ())
    assert opened.vocabulary == 260


def test_the_template_of_its_own_file_counts_first(model):
    folder = model("of the configuration")
    (folder / "chat_template.jinja").write_text("of its file")
    assert write(open_it(folder)) == "of its file"


def test_of_several_templates_the_default_one_is_read(model):
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert write(open_it(model(several))) == "b"


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


def begun_by_a_token(tokenizer):
    """Return the tokenizer as it puts a special token before a text, and one after."""
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    return changed


def test_special_tokens_are_in_a_prompt_once(tokenizer):
    opened = data.open_tokenizer(begun_by_a_token(tokenizer), template=CHATML)
    assert opened.encode("ab") == opened.encode("<s>ab") == [256, *tokenizer.encode("ab").ids]
    prompt = opened.encode(talk("a"))
    assert prompt == tokenizer.encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n").ids
    assert opened.decode([*prompt, 97 - 33]) == "user\na\nassistant\na"


def test_a_prompt_is_what_comes_before_an_answer_in_training(model, tokenizer, lines):
    """So a model that was trained on conversations is asked as it was trained."""
    for text in (CHATML, HEADED, REASONING):
        folder = model(text)
        source = data.chat(lines({"messages": talk(" a", "b")}), folder, batch_size=1, length=99)
        tokens, mask = source.example["inputs"]["tokens"][0], source.example["mask"][0]
        asked = data.open_tokenizer(folder).encode(talk(" a"))
        assert tokens[: int(mask.argmax()) + 1].tolist() == asked


def test_tools_reach_the_template(tokenizer):
    opened = data.open_tokenizer(tokenizer, template="{{ tools | tojson }}{{ messages | length }}")
    assert opened.render_prompt(talk("a"), tools=[{"name": "f"}]) == '[{"name": "f"}]1'
    assert opened.encode(talk("a")) == tokenizer.encode("null1").ids


def test_the_ends_of_an_answer_are_all_that_files_and_template_name(model):
    assert open_it(model()).stop == (257,)
    folder = model(CHATML)
    assert open_it(folder).stop == (257, 259)
    for named, stop in ((258, (257, 258, 259)), ([259, 256], (256, 257, 259)), (None, (257, 259))):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        assert open_it(folder).stop == stop
    for named, said in ((260, "names eos_token_id 260, which"), ("</s>", "must be a token, or")):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        with pytest.raises(ValueError, match=said):
            open_it(folder)


def test_a_template_names_the_end_of_an_answer(tokenizer):
    refusing = "{{ raise_exception('needs a tool') if messages | length < 3 }}"
    for text in (CHATML, MARKED, HEADED.replace("bos_token", "''"), REASONING):
        assert data.open_tokenizer(tokenizer, template=text).stop == (259,)
    for text in ("{{ messages[-1].content }}", "{{ messages | length }}", refusing):
        assert data.open_tokenizer(tokenizer, template=text).stop == ()


def test_an_open_tokenizer_serves_data_and_takes_another_template(model, lines):
    opened = data.open_tokenizer(model(CHATML))
    file = lines({"messages": talk("a", "b")})
    inputs = data.chat(file, opened, batch_size=1, length=40).example["inputs"]
    tokens = inputs["tokens"][inputs["segments"] > 0].tolist()
    assert opened.decode(tokens) == "user\na\nassistant\nb"
    other = data.open_tokenizer(opened, template="{{ eos_token }}{{ messages[0].content }}")
    assert other.render_prompt(talk("a")) == "</s>a"


def test_what_is_no_prompt_is_an_error(tokenizer):
    bare, opened = (data.open_tokenizer(tokenizer, template=text) for text in (None, CHATML))
    with pytest.raises(ValueError, match="needs a chat template .* beside the tokenizer: pass tem"):
        bare.encode(talk("a"))
    with pytest.raises(ValueError, match="must be a list of messages, .*; got an empty one"):
        opened.encode([])
    with pytest.raises(ValueError, match='message 1 of a prompt must have "role"'):
        opened.encode([3])
