"""What runs that are killed train: small programs of each kind."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _killed_sources import SOURCES, MakeSource, make_examples

import models
import trainer
from trainer import data, losses, rl

STEPS = 9
"""Of an epoch: a stretch of a pass, so that no pass ends with an epoch."""


class Program(NamedTuple):
    """What a run trains and evaluates."""

    begin: trainer.TrainState
    train: trainer.Phase | tuple[trainer.Phase, ...]
    val: trainer.Phase
    """It measures `loss` and `accuracy`."""


def classify_digits(directory: Path) -> Program:
    """Read a stream whose epochs are stretches of a pass of 22 batches.

    The state has an array that never changes, to which checkpoints refer.
    """
    whole, val = data.digits(batch_size=64)
    stream = data.Stream(_Passes(whole), superbatch=4, steps_per_epoch=STEPS)
    network = models.mlp(classes=10, hidden=(128,))
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
    task = trainer.supervised(network, losses.classification, optimizer)
    begin = task.init(jax.random.key(0), stream.example)
    return Program(
        begin.replace(carry={**begin.carry, "frozen": jnp.arange(2**16)}),
        trainer.training(task.step, stream),
        trainer.evaluation(task.measure, val),
    )


class _Passes:
    """Passes over the digits, shuffled by seed and number of the pass."""

    def __init__(self, source: data.Arrays) -> None:
        self.arrays = {name: np.asarray(array) for name, array in source.arrays.items()}
        self.size = source.batch_size

    def __call__(self, seed: int, number: int) -> Any:
        order = np.random.default_rng((seed, number)).permutation(len(self.arrays["labels"]))
        for start in range(0, len(order), self.size):
            places = order[start : start + self.size]
            yield {name: array[places] for name, array in self.arrays.items()}


TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tune_on_conversations(directory: Path) -> Program:
    """Mix packed conversations with packed texts, by weights that change with the step."""
    random, length = np.random.default_rng(0), 64
    asked, texts = Path(directory, "asked.jsonl"), Path(directory, "texts.jsonl")
    sums = random.integers(0, 50, (150, 2)).tolist()
    asked.write_text("\n".join(json.dumps({"messages": _ask(a, b)}) for a, b in sums))
    texts.write_text("\n".join(json.dumps({"text": f"{a} {b} " * (1 + b % 5)}) for a, b in sums))
    tokenizer = make_byte_tokenizer()
    settings: Any = {"batch_size": 4, "length": length, "template": TEMPLATE}
    sources = {
        "asked": data.chat(asked, tokenizer, part=(0, 0.8), **settings),
        "texts": data.chat(texts, tokenizer, too_long="drop", **settings),
    }
    weights = {"asked": optax.linear_schedule(0.2, 1.0, 100), "texts": {0: 1.0, 150: 0.1}}
    mixed = data.mixture(sources, weights=weights, steps_per_epoch=STEPS)
    network = models.transformer(vocabulary=256, context=length, layers=1, heads=2, width=16)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
    task = trainer.supervised(network, losses.language_modeling, optimizer)
    return Program(
        task.init(jax.random.key(0), mixed.example),
        trainer.training(task.step, mixed),
        trainer.evaluation(
            task.measure, data.chat(asked, tokenizer, part=(0.8, 1), pack=False, **settings)
        ),
    )


def make_byte_tokenizer() -> Any:
    """Build a tokenizer with a token for each byte; the library is imported where it is used."""
    import tokenizers
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _ask(a: int, b: int) -> list[dict[str, str]]:
    turns = ("user", f"{a}+{b}"), ("assistant", str(a + b))
    return [{"role": role, "content": content} for role, content in turns]


def prefer_right_sums(directory: Path) -> Program:
    """Prefer right sums to wrong ones, by adapters, and by a reference kept with the pairs."""
    file, length = Path(directory, "pairs.jsonl"), 24
    sums = np.random.default_rng(0).integers(0, 50, (150, 2)).tolist()
    pairs = [
        {"prompt": _ask(a, b)[:1], "chosen": _ask(a, b)[1:], "rejected": _ask(a, b + 1)[1:]}
        for a, b in sums
    ]
    file.write_text("\n".join(map(json.dumps, pairs)))
    network = models.transformer(vocabulary=256, context=length, layers=1, heads=2, width=16)
    inputs = jnp.zeros((1, length), jnp.int32)
    params, _ = jax.jit(network.init)(jax.random.key(1), inputs)
    sources = [
        trainer.add_reference(
            data.preferences(
                file,
                make_byte_tokenizer(),
                template=TEMPLATE,
                batch_size=4,
                length=length,
                part=part,
                steps_per_epoch=steps,
            ),
            network,
            params,
        )
        for part, steps in (((0, 0.8), STEPS), ((0.8, 1), None))
    ]
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
    adapted = models.lora(network, params, rank=2)
    task = trainer.supervised(adapted, losses.dpo(), optimizer)
    return Program(
        task.init(jax.random.key(0), sources[0].example),
        trainer.training(task.step, sources[0]),
        trainer.evaluation(task.measure, sources[1]),
    )


def reward_even_answers(directory: Path) -> Program:
    """Reward even digits of short answers; evaluate how likely an even digit is."""
    prompts = [[digit, 10] for digit in range(10)]
    network = models.transformer(vocabulary=12, context=8, layers=1, heads=2, width=16)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=3e-3)
    settings = rl.GRPOConfig(prompts=4, group_size=4, length=4, stop=(11,), minibatches=4)

    def reward(examples: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        written = jnp.arange(settings.length) < lengths[:, None]
        return ((tokens % 2 == 0) & (tokens < 10) & written).sum(-1) / settings.length

    agent = rl.grpo(network, _Digits(), prompts, reward, optimizer, settings)
    inputs = np.array([[digit, 10, 2, 4] for digit in range(10)], np.int32)
    labels = np.roll(inputs, -1, axis=1)
    measured = trainer.supervised(network, losses.language_modeling, optimizer).measure
    return Program(
        agent.init(jax.random.key(0)),
        agent.program,
        trainer.evaluation(measured, data.Arrays({"inputs": inputs, "labels": labels}, 5)),
    )


class _Digits:
    """A tokenizer of digits; 10 ends a prompt, and 11 an answer."""

    def encode(self, text: str) -> list[int]:
        return [int(digit) for digit in text]

    def decode(self, tokens: Any) -> str:
        return "".join(map(str, tokens))


def classify_by_source(make: MakeSource, directory: Path) -> Program:
    """Classify the examples of a source of another library; the first batch is the split."""
    source = make(directory, make_examples(), STEPS)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
    task = trainer.supervised(models.mlp(classes=3, hidden=(8,)), losses.classification, optimizer)
    split = jax.tree.map(np.asarray, source.example)
    return Program(
        task.init(jax.random.key(0), source.example),
        trainer.training(task.step, source),
        trainer.evaluation(task.measure, data.Arrays(split, len(split["labels"]))),
    )


PROGRAMS = {
    "digits": classify_digits,
    "conversations": tune_on_conversations,
    "preferences": prefer_right_sums,
    "rewards": reward_even_answers,
    **{name: functools.partial(classify_by_source, make) for name, make in SOURCES.items()},
}
"""By name."""
