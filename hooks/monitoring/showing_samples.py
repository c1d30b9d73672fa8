"""Show samples of a language model as it trains: what it writes after given prompts."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hooks.combining import Chain, chain
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    select_params,
)
from hooks.metric_logging import check_writers, resume_writers, write_values
from hooks.writers.values import Text, Value
from hooks.writers.writer import Writer
from trainer import TrainState
from trainer.checks.language_models import check_prompts, require_sampler
from trainer.data.prompts.continuations import decode_continuation
from trainer.data.prompts.left_padding import make_inputs, pad_prompts
from trainer.data.prompts.prompt_encoding import encode_prompts, prepare_tokenizer
from trainer.data.prompts.stop_tokens import choose_stop
from trainer.host.exception_notes import annotate_errors
from trainer.phases.buffers.state_buffers import has_same_arrays
from trainer.supervised.step_averages import AVERAGE


def show_samples(
    decoder: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *writers: Writer,
    length: int = 64,
    temperature: float = 1.0,
    top_p: float | None = None,
    stop: Sequence[int] | None = None,
    params: str | None = None,
) -> Chain:
    """Write what a language model generates after prompts, `samples/0` for the first of them.

    At each `epoch` the writers get a `Text` for each prompt, which begins with it. Generating is
    one compiled function. Its random numbers come from the state: the same state writes the same
    samples, and training is not changed. Use it with a period, `every(5, show_samples(...))`.

    Args:
        decoder: the network, from `models.transformer` or `models.lora`.
        tokenizer: the directory of the weights or another that `data.open_tokenizer` takes or
            returns; or an object with `encode(text)`, which returns token ids or a record with
            `ids`, and `decode(ids)`.
        prompts: texts; lists of messages, which the chat template of the tokenizer writes up to the
            beginning of an answer; or lists of token ids.
        writers: those of `log_metrics` or others. In `background` no other hook may use them.
        length: largest number of tokens to generate.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: share of the probability of the likeliest tokens to draw from; None for all.
        stop: tokens that end a sample, which are not shown; None: those that the tokenizer names.
        params: name of a hook before this one that keeps parameters, such as `average_params`, to
            generate with instead of the trained ones, as `samples/average_params/0`; `average`:
            those that `supervised(..., average=0.999)` keeps.

    Raises:
        TypeError: the network does not sample, an argument is no writer or no tokenizer.
        ValueError: there is no prompt or no writer, or a setting is out of range; before training,
            the longest prompt and its sample exceed the context, or a token is not in the
            vocabulary.

    >>> from types import SimpleNamespace
    >>> import models
    >>> from hooks.writers.console import Console
    >>> letters = SimpleNamespace(encode=str.encode, decode=lambda ids: bytes(ids).decode())
    >>> decoder = models.transformer(vocabulary=128, context=8, layers=1, heads=2, width=8)
    >>> print(show_samples(decoder, letters, ["to be"], Console(), length=3))
    event  stage    hook                reads  writes
    start  observe  show_samples/start
    epoch  observe  show_samples
    """
    who = "show_samples"
    require_sampler(decoder, who)
    tokenizer = prepare_tokenizer(tokenizer, who)
    if not writers:
        raise ValueError(f"{who} needs a writer: {who}(decoder, tokenizer, prompts, Console())")
    check_writers(who, writers)
    encoded = encode_prompts(tokenizer, prompts, who)
    arrays = pad_prompts([prompt.tokens for prompt in encoded])
    inputs = make_inputs(arrays, jnp.arange(len(encoded)))
    name, tag = (who, "samples") if params is None else (f"{who}/{params}", f"samples/{params}")
    required, ending = list_required_states(params), choose_stop(stop, tokenizer, who)
    prepared: dict[int, tuple[TrainState, Any]] = {}

    @jax.jit
    def sample(kept: Mapping[str, Any], inputs: Any, key: jax.Array) -> Any:
        return decoder.sample(
            *(kept["params"], kept["model_state"], inputs),
            key=key,
            length=length,
            temperature=temperature,
            top_p=top_p,
            stop=ending,
        )

    def draw(state: TrainState) -> Any:
        return sample(select_params(state, params), inputs, state.key(f"hook/{name}"))

    def check(state: TrainState) -> None:
        check_step_average(state, params)
        kept = {"params": state.params, "model_state": state.model_state}
        kept = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), kept)
        with annotate_errors(f"in checking hook {name!r} before training"):
            check_prompts(decoder, kept["params"], kept["model_state"], arrays, length, who)
            jax.eval_shape(sample, kept, inputs, jax.random.key(0))

    def prepare(state: TrainState) -> None:
        if not required and jax.process_count() == 1:
            prepared[threading.get_ident()] = state, draw(state)

    def read(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Value]:
        known, drawn = prepared.pop(threading.get_ident(), (None, None))
        if known is None or not has_same_arrays(known, state):
            drawn = draw(state)
        drawn = jax.device_get(drawn)
        texts: dict[str, Value] = {}
        for row, prompt in enumerate(encoded):
            written = drawn.tokens[row, : drawn.lengths[row]].tolist()
            if written[-1] in ending:
                written.pop()
            continuation = decode_continuation(tokenizer, prompt.tokens, written)
            texts[f"{tag}/{row}"] = Text(prompt.text + continuation)
        return texts

    def close(error: BaseException | None) -> None:
        prepared.pop(threading.get_ident(), None)  # of an event that an error has ended
        if writing.close is not None:
            writing.close(error)

    resume, writing = resume_writers(name, writers), write_values(name, writers, read)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        check(state)
        return resume.function(state, metrics)

    kept_at = {None: (), AVERAGE: ("carry",)}.get(params, (f"hook_state/{params}",))
    return chain(
        dataclasses.replace(resume, function=begin),
        dataclasses.replace(
            writing,
            gather=("params", "model_state", *kept_at),
            required_hook_states=required,
            prepare=prepare,
            close=close,
        ),
    )
