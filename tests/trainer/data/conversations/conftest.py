"""A tokenizer of bytes, and chat templates as families of models have them."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The last answer, and no other, begins with empty thoughts."""

REASONING = """
{%- set at = namespace(query=0) %}
{%- for m in messages %}
  {%- if m.role == "user" %}{% set at.query = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
  {%- set said = m.content or "" %}{% set thoughts = "" %}
  {%- if m.role == "assistant" and "</think>" in said %}
    {%- set thoughts = said.split("</think>")[0].split("<think>")[-1].strip("\n") %}
    {%- set said = said.split("</think>")[-1].lstrip("\n") %}
  {%- endif %}
  {%- if m.role == "tool" %}
    {%- if loop.previtem.role != "tool" %}{{ "<|im_start|>user" }}{% endif %}
    {{- "\n<result>" + said + "</result>" }}
    {%- if loop.last or loop.nextitem.role != "tool" %}{{ "<|im_end|>\n" }}{% endif %}
  {%- else %}
    {{- "<|im_start|>" + m.role + "\n" }}
    {%- if m.role == "assistant" and loop.index0 > at.query and (loop.last or thoughts) %}
      {{- "<think>\n" + thoughts + "\n</think>\n\n" + said.lstrip("\n") }}
    {%- else %}{{ said }}{% endif %}
    {%- for call in m.tool_calls or [] %}
      {%- if said or not loop.first %}{{ "\n" }}{% endif %}
      {{- "<call>" + call.name + "</call>" }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}"""
"""Thoughts are written after the last question alone, empty ones where the last answer has none;
results of tools that follow one another are one message of the user."""

HEADED = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n\n' + message.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)
"""It begins with a special token, and strips contents."""

MARKED = (
    "{%- for message in messages -%}\n"
    "{{ '<|im_start|>' + message.role + '\n' }}\n"
    "{%- if message.role == 'assistant' -%}\n"
    "  {%- generation -%} {{ message.content + '<|im_end|>' }} {%- endgeneration -%}\n"
    "{%- else -%} {{ message.content + '<|im_end|>' }} {%- endif -%}\n"
    "{{ '\n' }}\n"
    "{%- endfor -%}"
)

ENDS = {
    CHATML: "<|im_end|>\n",
    ALTERNATING: " </s>",
    THINKING: "<|im_end|>\n",
    MARKED: "<|im_end|>",
}
"""What ends an answer."""


def make_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({one: n for n, one in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return made


@pytest.fixture(scope="session")
def tokenizer():
    """A token for each byte, and four special ones from 256 on."""
    return make_tokenizer()


@pytest.fixture
def model(tmp_path, tokenizer):
    """Makes a directory with a tokenizer, as it comes with weights."""

    def make(template=None, **config):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
        if template is not None:
            config["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def lines(tmp_path):
    """Writes a file of JSON lines."""

    def write(*examples, name="examples.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in examples))
        return file

    return write


def talk(*contents):
    """Return messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": one} for n, one in enumerate(contents)]


def read_trained(tokenizer, batch):
    """Return the text of each row's labels that are trained on."""
    pairs = zip(batch["labels"], batch["mask"], strict=True)
    return [tokenizer.decode(one[mask].tolist(), skip_special_tokens=False) for one, mask in pairs]
