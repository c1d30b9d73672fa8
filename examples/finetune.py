"""Fine-tune a language model, by files that other libraries read and write too.

A small Llama is trained on the documentation that ships with Python, and written as a directory of
the Hugging Face hub. That is read again, as one of your own would be: low-rank adapters learn to
say which section a passage is from, and then, by preferences, to say it without hedging. Run it
again, and each of the three stages resumes where it stopped.

python examples/finetune.py
"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import numpy as np
import tokenizers

import hooks
import models
import trainer
from trainer import configuration, data, losses
from trainer.configuration import Optimizer, Schedule

SECTIONS = {
    "specialnames": "special method names",
    "compound": "compound statements",
    "formatstrings": "format strings",
    "string-methods": "string methods",
    "debugger": "the debugger",
    "typesseq": "sequence types",
}
"""Topics of the documentation, and what answers call them."""

DIRECT, HEDGED = "In {}.", "It may be in {}, but I am not sure."
"""Forms of an answer: one is learned as often as the other, and the first is preferred."""

PASSAGE, ANSWER, HELD_OUT = 160, 24, 0.2
"""Characters of a passage and tokens of an answer, at most; share of paragraphs to measure on."""

QUESTION, END = "Which section says this? {}", "<|im_end|>"
TEMPLATE = """{% for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""ChatML, as Qwen has it."""

Passage = tuple[str, str]
"""A text, and what its section is called."""


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/finetune")
    base_epochs: int = 6
    """Epochs of the base, of `steps_per_epoch` each."""
    steps_per_epoch: int = 100
    epochs: int = 4
    """Passes over the questions."""
    preference_epochs: int = 1
    batch_size: int = 8
    context: int = 256
    """Context of the network and length of a row, in tokens."""
    layers: int = 4
    width: int = 128
    vocabulary: int = 1024
    rank: int = 8
    question_rate: float = 5e-3
    """Learning rate of the adapters; `optimizer.learning_rate` is that of the base."""
    preference_rate: float = 2e-4
    optimizer: Optimizer = Optimizer(learning_rate=3e-3, weight_decay=0.1, clip_norm=1.0)
    schedule: Schedule = Schedule("cosine", warmup_share=0.05, decay_to=0.05)


def split_paragraphs() -> tuple[list[str], list[str]]:
    """Return the paragraphs of the documentation to train on, and those that are held out.

    Each counts once: topics repeat each other.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    paragraphs = list(dict.fromkeys(paragraphs))
    order = np.random.default_rng(0).permutation(len(paragraphs))
    border = int(HELD_OUT * len(order))
    train, held_out = sorted(order[border:]), sorted(order[:border])
    return [paragraphs[place] for place in train], [paragraphs[place] for place in held_out]


def cut_passages(paragraphs: Sequence[str], known: Sequence[str] = ()) -> list[Passage]:
    """Cut paragraphs of one section alone into passages, but for those within known paragraphs."""
    found, seen = [], " ".join(" ".join(known).split())
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        names = [name for topic, name in SECTIONS.items() if paragraph in topics[topic]]
        if len(text) >= 60 and len(names) == 1:
            starts = range(0, max(1, len(text) - PASSAGE // 2), PASSAGE)
            cut = [text[start : start + PASSAGE] for start in starts]
            found += [(passage, names[0]) for passage in cut if passage not in seen]
    return found


def guess_sections(train: Sequence[Passage], held_out: Sequence[Passage]) -> float:
    """Return the share of sections that naive Bayes, which counts words, guesses right."""
    counts: dict[str, Counter] = {name: Counter() for _, name in train}
    for text, name in train:
        counts[name].update(re.findall(r"\w+|\S", text.lower()))
    words = len(set().union(*counts.values()))

    def score(text: str, name: str) -> float:
        total = counts[name].total() + 0.1 * words
        found = re.findall(r"\w+|\S", text.lower())
        return sum(math.log((counts[name][word] + 0.1) / total) for word in found)

    guessed = [(max(counts, key=lambda one: score(text, one)), name) for text, name in held_out]
    return float(np.mean([one == name for one, name in guessed]))


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": QUESTION.format(text)}]


def reply(form: str, name: str) -> list[dict]:
    return [{"role": "assistant", "content": form.format(name)}]


def write_questions(file: Path, passages: Sequence[Passage]) -> Path:
    """Write conversations: each passage is asked for twice, and answered in both forms."""
    conversations = [
        {"messages": [*ask(text), *reply(form, name)]}
        for text, name in passages
        for form in (DIRECT, HEDGED)
    ]
    file.write_text("\n".join(map(json.dumps, conversations)))
    return file


def write_preferences(file: Path, passages: Sequence[Passage]) -> Path:
    """Write preferences: the direct answer over the one that hedges."""
    pairs = [
        {"prompt": ask(text), "chosen": reply(DIRECT, name), "rejected": reply(HEDGED, name)}
        for text, name in passages
    ]
    file.write_text("\n".join(map(json.dumps, pairs)))
    return file


def train_stage(
    config: Config, stage: str, network: Any, loss: Any, sources: Sequence[Any], *, rate: float
) -> tuple[trainer.TrainState, dict[str, float]]:
    """Train a stage in a directory of its own; return the state, and scores on held-out data."""
    train, held_out = sources
    shared = {field.name: getattr(config, field.name) for field in fields(trainer.TrainingConfig)}
    shared["optimizer"] = replace(config.optimizer, learning_rate=rate)
    shared["run"] = config.run / stage  # without the settings of other stages, which may change
    settings = trainer.TrainingConfig(**shared)
    task = trainer.supervised(
        network,
        loss,
        configuration.optimizer(settings, settings.epochs * train.training().steps),
        accumulate=settings.optimizer.accumulate,
        clip_norm=settings.optimizer.clip_norm,
        precision=settings.precision,
    )
    val = trainer.evaluation(task.measure, held_out)
    state, _ = trainer.fit(
        task.init(jax.random.key(settings.seed), train.example),
        trainer.training(task.step, train),
        epochs=settings.epochs,
        hooks=hooks.chain(
            hooks.evaluate(val),
            hooks.stop_on_nan(),
            hooks.build_hooks(settings, given={"val": val}),
        ),
    )
    return state, trainer.evaluate(state, val)


def train_base(config: Config, train: str, held_out: str) -> Path:
    """Train a small Llama from nothing; return its directory, as one of the hub."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()  # the same from the same text
    special = ["<|endoftext|>", "<|im_start|>", END]
    tokenizer.train_from_iterator(
        [train], vocab_size=config.vocabulary, special_tokens=special, show_progress=False
    )
    length, counts = config.context // 2, []
    for name, text in (("train", train), ("held_out", held_out)):
        tokens = np.array(tokenizer.encode(text).ids)
        file = config.run / f"{name}.tokens"
        counts.append(data.pack_tokens([tokens], file, vocabulary=config.vocabulary))
    sources = (
        data.Tokens(
            config.run / "train.tokens",
            batch_size=2 * config.batch_size,
            length=length,
            stride=max(1, length // 8),
            steps_per_epoch=config.steps_per_epoch,
        ),
        data.Tokens(config.run / "held_out.tokens", batch_size=32, length=length),
    )
    network = models.transformer(
        vocabulary=config.vocabulary,
        context=config.context,
        layers=config.layers,
        width=config.width,
        hidden=2 * config.width,
        architecture=models.Architecture(
            gated=True, activation="silu", kv_heads=2, embedding_scale=1.0
        ),
    )
    settings = replace(config, epochs=config.base_epochs)
    loss, rate = losses.language_modeling, config.optimizer.learning_rate
    state, scores = train_stage(settings, "base", network, loss, sources, rate=rate)
    bits = scores["val/bits_per_character"] * counts[1] / len(held_out)  # it is bits per token
    print(f"base: {bits:.2f} bits per character of held-out text")
    directory = config.run / "llama"
    shutil.rmtree(directory, ignore_errors=True)  # it may be of a base that was trained before
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    models.to_huggingface(network, state.params, directory, family="llama")
    return directory


def examine(
    network: models.Decoder, variables: tuple, directory: Path, passages: Sequence[Passage]
) -> str:
    """Say how many of the likeliest answers name the section, and how many of drawn ones hedge."""
    tokenizer = data.open_tokenizer(directory)
    questions = [[{"role": "user", "content": QUESTION.format(text)}] for text, _ in passages]
    answers = []
    for temperature in (0.0, 1.0):
        written = models.generate(
            network,
            variables[0],
            [tokenizer.encode(question) for question in questions],
            length=ANSWER,
            key=jax.random.key(0),
            temperature=temperature,
            stop=tokenizer.stop,
            model_state=variables[1],
        )
        rows = zip(written.tokens.tolist(), written.lengths.tolist(), strict=True)
        answers.append([tokenizer.decode(row[:length]) for row, length in rows])
    right = np.mean([name in one for one, (_, name) in zip(answers[0], passages, strict=True)])
    hedged = np.mean(["not sure" in one for one in answers[1]])
    return f"{right:.2f} of the sections right, {hedged:.2f} of the answers hedged"


def main(config: Config) -> None:
    config.run.mkdir(parents=True, exist_ok=True)
    train, held_out = split_paragraphs()
    directory = train_base(config, "\n\n".join(train), "\n\n".join(held_out))
    network, params = models.from_huggingface(directory)
    passages, asked = cut_passages(train), cut_passages(held_out, train)

    adapted = models.lora(network, params, rank=config.rank)
    rows: dict = {"tokenizer": directory, "batch_size": config.batch_size}
    questions = [
        data.chat(write_questions(config.run / name, some), length=config.context, **rows)
        for name, some in (("questions.jsonl", passages), ("asked.jsonl", asked))
    ]
    fresh = adapted.init(jax.random.key(config.seed), questions[0].example["inputs"])
    print("before:", examine(adapted, fresh, directory, asked))
    loss, rate = losses.language_modeling, config.question_rate
    tuned, _ = train_stage(config, "questions", adapted, loss, questions, rate=rate)
    learned = tuned.params, tuned.model_state
    print("questions:", examine(adapted, learned, directory, asked))
    print(f"naive Bayes: {guess_sections(passages, asked):.2f} of the sections right")

    compared = [
        data.preferences(
            write_preferences(config.run / name, some), length=config.context // 2, **rows
        )
        for name, some in (("preferences.jsonl", passages[::4]), ("compared.jsonl", asked))
    ]
    pairs = [trainer.add_reference(some, adapted, *learned) for some in compared]
    settings = replace(config, epochs=config.preference_epochs)
    start, rate = models.pretrained(adapted, *learned), config.preference_rate
    state, scores = train_stage(settings, "preferences", start, losses.dpo(), pairs, rate=rate)
    print("preferences:", examine(adapted, (state.params, state.model_state), directory, asked))
    print(f"held-out preferences: {scores['val/accuracy']:.3f} right")

    for name in ("adapter", "merged"):
        shutil.rmtree(config.run / name, ignore_errors=True)
    models.to_peft(adapted, state.params, config.run / "adapter", base=str(directory))
    whole = models.merge_lora(adapted, state.params, state.model_state)
    models.to_huggingface(network, whole, config.run / "merged", like=directory)
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
