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
from trainer.checks.language_models import require_tokenizer
from trainer.commands.lookup.checkpoint_choice import NEWEST, SelectionOptions, choose_checkpoint
from trainer.commands.lookup.functions import load_function
from trainer.commands.lookup.stores import RunName, StoreName
from trainer.commands.terminal.calling import CommandError
from trainer.data.conversations.continuations import decode_continuation
from trainer.host.escaping import escape_lines, escape_text
from trainer.rl.answering.prompt_tables import (
    PromptTable,
    check_prompt_tokens,
    make_inputs,
    tabulate_prompts,
)
from trainer.state import TrainState

FORM = "(checkpoint) -> (network, state, tokenizer)"
"""How the function that a user names is called."""

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
    stop: tuple[str, ...] = ()
    """tokens that end a text, each as the tokenizer writes it, such as "<|im_end|>"."""
    seed: int = 0
    """of the random numbers; the same seed writes the same texts."""


def generate(
    run: RunName,
    /,
    *,
    with_: Annotated[str, tyro.conf.arg(name="with")],
    prompt: tuple[str, ...],
    sampling: Annotated[TextSampling, tyro.conf.arg(name="")] = TextSampling(),
    selection: SelectionOptions = NEWEST,
    store: StoreName = None,
) -> int:
    """Write text with the language model of a checkpoint, as it is generated.

    It calls your function NAME(checkpoint), which restores the checkpoint,
    checkpoint.restore(template), and returns (network, state, tokenizer). The tokenizer has
    encode(text) and decode(ids), as a tokenizers.Tokenizer does.

    Args:
        run: its name, or the path of its directory.
        with_: FILE:NAME of the function, such as examples/text.py:language.
        prompt: what the text begins with; several write a text each.
    """
    choice = choose_checkpoint(run, store, selection)
    network, state, tokenizer = _check(with_, load_function(with_, FORM)(choice))
    table = _tabulate(tokenizer, prompt)
    key = jax.random.key(sampling.seed)
    try:
        stop = tuple(_find_token(tokenizer, text) for text in sampling.stop)
        check_prompt_tokens(network, state.params, state.model_state, table)
        for number in range(len(prompt)):
            if number:
                print()
            _write(
                (network, state, tokenizer),
                table,
                number,
                key=jax.random.fold_in(key, number),
                sampling=sampling,
                stop=stop,
            )
    except (ValueError, TypeError) as error:
        raise CommandError(escape_lines(error)) from error
    return 0


def _check(named: str, loaded: Any) -> tuple[Any, TrainState, Any]:
    """Check what the function of a user returned: a language model, its state and its tokenizer."""
    from entracte import models

    if not isinstance(loaded, tuple) or len(loaded) != 3:
        raise CommandError(
            f"{escape_text(named)} must be a function {FORM}; it returned {describe_value(loaded)}"
        )
    network, state, tokenizer = loaded
    if not isinstance(network, models.Decoder):
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
        require_tokenizer(tokenizer, escape_text(named))
    except TypeError as error:
        raise CommandError(escape_lines(error)) from error
    return network, state, tokenizer


def _tabulate(tokenizer: Any, prompts: Sequence[str]) -> PromptTable:
    """Tokenize the prompts, padded to one length, so that one compiled function reads them all."""
    try:
        return tabulate_prompts(tokenizer, list(prompts), "--prompt")
    except (ValueError, TypeError, LookupError) as error:
        raise CommandError(f"the tokenizer refuses a prompt: {escape_lines(error)}") from error


def _find_token(tokenizer: Any, text: str) -> int:
    """Return the token that a text is."""
    find = getattr(tokenizer, "token_to_id", None)
    if find is not None and (token := find(text)) is not None:
        return int(token)
    encoded = tokenizer.encode(text)
    tokens = list(getattr(encoded, "ids", encoded))
    if len(tokens) != 1:
        raise CommandError(
            f"--stop must be one token of the tokenizer; {escape_text(text)!r} is {len(tokens)}"
        )
    return int(tokens[0])


def _write(
    model: tuple[Any, TrainState, Any],
    table: PromptTable,
    number: int,
    *,
    key: jax.Array,
    sampling: TextSampling,
    stop: tuple[int, ...],
) -> None:
    """Print a prompt, and what follows it while it is generated."""
    from entracte import models

    network, state, tokenizer = model
    inputs = make_inputs(table.arrays, jnp.array([number]))
    prompt = table.arrays["tokens"][number][-table.arrays["lengths"][number] :].tolist()
    written: list[int] = []
    shown = 0

    def show(step: int, tokens: np.ndarray) -> None:
        if not step:  # no error of a setting comes after it
            print(escape_lines(table.texts[number]), end="", flush=True)
        if (token := int(tokens[0])) not in stop:
            written.append(token)
            print_new(complete=False)

    def print_new(*, complete: bool) -> None:
        nonlocal shown
        text = decode_continuation(tokenizer, prompt, written)
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
