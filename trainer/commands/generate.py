"""The command `generate`: write text with the language model of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from trainer.checks.arguments import describe_value
from trainer.checks.language_models import check_prompts
from trainer.commands.lookup.checkpoint_choice import NEWEST, SelectionOptions, choose_checkpoint
from trainer.commands.lookup.functions import load_function
from trainer.commands.lookup.stores import RunName, StoreName
from trainer.commands.terminal.calling import CommandError
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.data.prompts.continuations import decode_continuation
from trainer.data.prompts.left_padding import make_inputs, pad_prompts
from trainer.data.prompts.prompt_encoding import Prompt, encode_prompts, prepare_tokenizer
from trainer.data.prompts.stop_tokens import choose_stop
from trainer.host.escaping import escape_lines, escape_text
from trainer.state import TrainState

FORM = "(checkpoint) -> (network, state, tokenizer)"
"""How the function that a user names is called."""

COMMAND = "generate"
"""What messages call it."""

INCOMPLETE = "\ufffd"
"""What a tokenizer decodes to where the bytes of a character are still to come."""


@dataclasses.dataclass(frozen=True)
class TextSampling:
    """How tokens are drawn."""

    length: int = 64
    """tokens of a text at most, its prompt not counted."""
    temperature: float = 1.0
    """divides the logits: below 1 likely tokens become likelier, at 0 the likeliest is taken."""
    top_k: int | None = None
    """number of likeliest tokens to draw from."""
    top_p: float | None = None
    """share of the probability, among those, of the fewest likeliest tokens to draw from."""
    stop: tuple[str, ...] | None = None
    """tokens that end a text, each as the tokenizer writes it, such as "<|im_end|>"; otherwise
    those that it names."""
    seed: int = 0
    """of the random numbers; the same seed writes the same texts."""


def generate(
    run: RunName,
    /,
    *,
    with_: Annotated[str, tyro.conf.arg(name="with")],
    prompt: tuple[str, ...],
    chat: bool = False,
    sampling: Annotated[TextSampling, tyro.conf.arg(name="")] = TextSampling(),
    selection: SelectionOptions = NEWEST,
    store: StoreName = None,
) -> int:
    """Write text with the language model of a checkpoint, as it is generated.

    It calls your function NAME(checkpoint), which restores the checkpoint,
    checkpoint.restore(template), and returns (network, state, tokenizer). The tokenizer is the
    directory of the weights, what data.open_tokenizer returns, or has encode(text) and decode(ids).

    Args:
        run: its name, or the path of its directory.
        with_: FILE:NAME of the function, such as examples/text.py:language.
        prompt: what the text begins with; several write a text each.
        chat: a prompt is a message of the user, which the tokenizer's chat template writes.
    """
    choice = choose_checkpoint(run, store, selection)
    network, state, tokenizer = _check(with_, load_function(with_, FORM)(choice))
    prompts = _encode(tokenizer, prompt, chat=chat)
    arrays = pad_prompts([one.tokens for one in prompts])
    key = jax.random.key(sampling.seed)
    try:
        stop = _choose_stop(tokenizer, sampling.stop)
        check_prompts(network, state.params, state.model_state, arrays, sampling.length, COMMAND)
        for number in range(len(prompt)):
            if number:
                print()
            _write(
                (network, state, tokenizer),
                prompts[number],
                make_inputs(arrays, jnp.array([number])),
                key=jax.random.fold_in(key, number),
                sampling=sampling,
                stop=stop,
            )
    except (ValueError, TypeError) as error:
        raise CommandError(escape_lines(error)) from error
    return 0


def _check(named: str, loaded: Any) -> tuple[Any, TrainState, Any]:
    """Check what the function of a user returned: a language model, its state and its tokenizer."""
    from models import Decoder

    if not isinstance(loaded, tuple) or len(loaded) != 3:
        raise CommandError(
            f"{escape_text(named)} must be a function {FORM}; it returned {describe_value(loaded)}"
        )
    network, state, tokenizer = loaded
    if not isinstance(network, Decoder):
        raise CommandError(
            f"{escape_text(named)} must return a language model first, such as models.transformer "
            f"makes; got {describe_value(network)}: for other networks there is simulate"
        )
    if not isinstance(state, TrainState):
        raise CommandError(
            f"{escape_text(named)} must return the restored state second; got "
            f"{describe_value(state)}"
        )
    try:
        return network, state, prepare_tokenizer(tokenizer, escape_text(named))
    except (TypeError, ValueError, OSError, ImportError) as error:
        raise CommandError(escape_lines(error)) from error


def _encode(tokenizer: Any, prompts: Sequence[str], *, chat: bool) -> list[Prompt]:
    """Tokenize the prompts."""
    asked = [[{"role": "user", "content": text}] if chat else text for text in prompts]
    try:
        return encode_prompts(tokenizer, asked, "--chat" if chat else "--prompt")
    except (ValueError, TypeError, LookupError) as error:
        raise CommandError(f"the tokenizer refuses a prompt: {escape_lines(error)}") from error


def _choose_stop(tokenizer: Any, stop: Sequence[str] | None) -> tuple[int, ...]:
    given = None if stop is None else [_find_token(tokenizer, text) for text in stop]
    return choose_stop(given, tokenizer, COMMAND)


def _find_token(tokenizer: Any, text: str) -> int:
    """Return the token that a text is."""
    encoder = tokenizer.encoder if isinstance(tokenizer, TextTokenizer) else tokenizer
    find = getattr(encoder, "token_to_id", None)
    if find is not None and (token := find(text)) is not None:
        return int(token)
    encoded = encoder.encode(text)
    tokens = list(getattr(encoded, "ids", encoded))
    if len(tokens) != 1:
        raise CommandError(
            f"--stop must be one token of the tokenizer; {escape_text(text)!r} is {len(tokens)}"
        )
    return int(tokens[0])


def _write(
    model: tuple[Any, TrainState, Any],
    prompt: Prompt,
    inputs: Any,
    *,
    key: jax.Array,
    sampling: TextSampling,
    stop: tuple[int, ...],
) -> None:
    """Print a prompt, and what follows it while it is generated."""
    import models

    network, state, tokenizer = model
    written: list[int] = []
    shown = 0

    def show(step: int, tokens: np.ndarray) -> None:
        if not step:  # no error of a setting comes after it
            print(escape_lines(prompt.text), end="", flush=True)
        if (token := int(tokens[0])) not in stop:
            written.append(token)
            print_new(complete=False)

    def print_new(*, complete: bool) -> None:
        nonlocal shown
        text = decode_continuation(tokenizer, prompt.tokens, written)
        if complete or not text.endswith(INCOMPLETE):
            print(escape_lines(text[shown:]), end="", flush=True)
            shown = len(text)

    models.generate(
        network,
        state.params,
        inputs,
        length=sampling.length,
        key=key,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop=stop,
        model_state=state.model_state,
        on_token=show,
    )
    print_new(complete=True)
    print()
