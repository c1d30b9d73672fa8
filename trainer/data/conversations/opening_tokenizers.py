"""Open a tokenizer: what encodes texts and messages, and the tokens that end an answer."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.data.conversations.chat_template import ChatTemplate, compile_template, split_marks
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.data.conversations.tokenizer_files import (
    CONFIG,
    GENERATION,
    TOKENIZER,
    TokenizerFiles,
    read_tokenizer_files,
)
from trainer.host.extras import require_extra
from trainer.host.safe_open import read_bytes

log = logging.getLogger("entracte")

_ANSWER = "\ufdd2"
"""An answer that no template changes, and that is nowhere else in what it writes."""


def open_tokenizer(
    tokenizer: Any, *, template: str | os.PathLike[str] | None = None
) -> TextTokenizer:
    """Open the tokenizer of a model, to ask it with the template that it was trained with.

    What it returns encodes prompts, texts or messages, and knows the tokens that end an answer.

    Args:
        tokenizer: a directory with `tokenizer.json` and what there is of `tokenizer_config.json`,
            `chat_template.jinja` and `generation_config.json`, as it comes with weights; the path
            of a `tokenizer.json`; or a `tokenizers.Tokenizer`, which knows neither a template nor
            what ends a text.
        template: the chat template, as a text or the path of a file; None: that of the directory.

    Raises:
        ImportError: `tokenizers` or `jinja2` is not installed.
        OSError: a file is missing or cannot be read.
        TypeError: it is something else.
        ValueError: a file is damaged, or names a token that the tokenizer does not know.

    See also: `docs/how_to/language/ask_a_model.md`; `models.generate`, `hooks.show_samples`,
    `rl.grpo`.

    >>> import tokenizers
    >>> words = {"?": 0, "<user>": 1, "<bot>": 2, "hello": 3}
    >>> made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    >>> made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    >>> tokenizer = open_tokenizer(made, template='''
    ... {%- for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}
    ... {%- if add_generation_prompt %}<bot>{% endif %}''')
    >>> tokenizer.encode([{"role": "user", "content": "hello"}])
    [1, 3, 2]
    """
    return read_tokenizer(tokenizer, "data.open_tokenizer", template)


def read_tokenizer(
    tokenizer: Any, who: str, template: str | os.PathLike[str] | None = None
) -> TextTokenizer:
    """Return an opened tokenizer, of what `open_tokenizer` takes, or of one that is open.

    Args:
        tokenizer, template: as of `open_tokenizer`.
        who: what needs it, for messages.

    Raises:
        ImportError, OSError, TypeError, ValueError: as `open_tokenizer`.

    >>> import tokenizers
    >>> words = tokenizers.models.WordLevel({"to": 0, "be": 1}, unk_token="to")
    >>> opened = read_tokenizer(tokenizers.Tokenizer(words), "data.chat")
    >>> opened.vocabulary, opened.eos, opened.encode("be")
    (2, None, [1])
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer if template is None else _add_template(tokenizer, template, who)
    with require_extra("language", who, "tokenizers"):
        import tokenizers
    if isinstance(tokenizer, tokenizers.Tokenizer):
        files = TokenizerFiles("the tokenizer", json.loads(tokenizer.to_str()), None, None, ())
    elif isinstance(tokenizer, str | os.PathLike):
        files = read_tokenizer_files(tokenizer, who)
    else:
        inner = (
            ": pass tokenizer.backend_tokenizer" if hasattr(tokenizer, "backend_tokenizer") else ""
        )
        raise TypeError(
            f"{who} takes a tokenizers.Tokenizer, a {TOKENIZER}, or a directory that has one; got "
            f"{describe_value(tokenizer)}{inner}"
        )
    opened = _build(tokenizers, files)
    if template is not None:
        return _add_template(opened, template, who)
    if files.template is None:
        return opened
    name = f"the chat template of {files.name}"
    return _add_compiled(opened, compile_template(files.template, name, files.special_tokens, who))


def _build(tokenizers: Any, files: TokenizerFiles) -> TextTokenizer:
    """Build a tokenizer without padding, truncation, special tokens and a template.

    A post-processor may also cut spaces off the offsets of tokens, and there is no way to ask it
    not to.
    """
    plain = {**files.content, "padding": None, "truncation": None, "post_processor": None}
    try:
        whole, encoder = (
            tokenizers.Tokenizer.from_str(json.dumps(one)) for one in (files.content, plain)
        )
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(
            f"{files.name} must be a tokenizer of the library tokenizers: {error}"
        ) from error
    eos = None
    if files.special_tokens and (text := files.special_tokens.get("eos_token")):
        eos = encoder.token_to_id(text)
        if eos is None:
            raise ValueError(f"{CONFIG} names eos_token {text!r}, which {files.name} does not know")
    if unknown := [one for one in files.ends if encoder.id_to_token(one) is None]:
        raise ValueError(
            f"{GENERATION} names eos_token_id {unknown[0]}, which {files.name} does not know"
        )
    return TextTokenizer(
        name=files.name,
        encoder=encoder,
        before=_find_beginning(whole),
        eos=eos,
        stop=_sort(files.ends, eos),
        vocabulary=max(encoder.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        special_tokens=files.special_tokens,
        template=None,
    )


def _find_beginning(whole: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before a text."""
    encoded = whole.encode("a")
    count = 0
    while count < len(encoded.ids) and encoded.special_tokens_mask[count]:
        count += 1
    return tuple(encoded.ids[:count])


def _add_template(
    tokenizer: TextTokenizer, template: str | os.PathLike[str], who: str
) -> TextTokenizer:
    """Return a tokenizer with the template that a user gives, as a text or a file."""
    if isinstance(template, str) and ("{%" in template or "{{" in template):
        text, name = template, "the given chat template"
    else:
        file = to_absolute_path(template, who)
        text, name = read_bytes(file, follow=True).decode(), f"the chat template of {file}"
    return _add_compiled(tokenizer, compile_template(text, name, tokenizer.special_tokens, who))


def _add_compiled(tokenizer: TextTokenizer, template: ChatTemplate) -> TextTokenizer:
    """Return a tokenizer with a template, and with the token that this writes after an answer."""
    end = _find_end(tokenizer.encoder, template)
    return dataclasses.replace(tokenizer, template=template, stop=_sort(tokenizer.stop, end))


def _find_end(encoder: Any, template: ChatTemplate) -> int | None:
    """Return the first special token that a template writes after an answer, if it writes any."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text, _ = split_marks(template.render(talk, variables={}))
    except ValueError as error:  # it may require a tool, or a message of the system
        log.debug("no end of an answer by the template: %s", error)
        return None
    after = text.rpartition(_ANSWER)[2] if _ANSWER in text else ""
    special = {n for n, one in encoder.get_added_tokens_decoder().items() if one.special}
    return next((token for token in encoder.encode(after).ids if token in special), None)


def _sort(tokens: Sequence[int], more: int | None) -> tuple[int, ...]:
    return tuple(sorted({*tokens} if more is None else {*tokens, more}))
