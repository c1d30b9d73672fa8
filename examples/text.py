"""Train a character-level transformer on the prose of Python's own documentation.

It is compared with a trigram model of the same text, and shows samples during training. Run it
again, and it resumes where it stopped, in the middle of the text.

python examples/text.py --epochs 20
entracte generate runs/text --with examples/text.py:language --prompt "A list "
"""

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import hooks
import models
import trainer
from trainer import configuration, data, losses
from trainer.configuration import Checkpointing, Optimizer, Schedule

TRAINED = 0.9
"""Share of the text for training; the rest is held out."""

PROMPT = "The "
"""Beginning of samples."""


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/text")
    epochs: int = 20
    steps_per_epoch: int = 100
    batch_size: int = 16
    context: int = 128
    """Context of the network, in characters."""
    layers: int = 4
    width: int = 128
    dropout: float = 0.1
    mesh: str = ""
    """Devices to spread over, such as data=4,model=2; without it one device."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-3, weight_decay=0.1, clip_norm=1.0)
    schedule: Schedule = Schedule("cosine", warmup_share=0.05, decay_to=0.05)
    checkpointing: Checkpointing = Checkpointing(best="val/loss")


class Characters(NamedTuple):
    """A tokenizer whose tokens are characters."""

    known: str

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text."""
        if unknown := set(text) - set(self.known):
            raise ValueError(f"only {self.known!r} are known; got {''.join(sorted(unknown))!r}")
        return np.array([self.known.index(character) for character in text])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return "".join(self.known[token] for token in tokens)


def prose() -> str:
    """Return the documentation with every paragraph once.

    Topics repeat each other: 8% of the last tenth occurs word for word in the training text.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def trigram_bits(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> float:
    """Return the bits per character of a trigram model that backs off to shorter contexts.

    Each count is mixed with the shorter context's share, by how many successors a context has: the
    interpolation of Witten and Bell, 1991.
    """
    seen = np.bincount(train, minlength=vocabulary) + 1.0
    share = seen / seen.sum()
    for order in (2, 3):
        counts = np.zeros((vocabulary,) * order)
        np.add.at(counts, tuple(train[n : len(train) - order + n + 1] for n in range(order)), 1)
        kinds = np.count_nonzero(counts, axis=-1, keepdims=True)
        share = (counts + np.maximum(kinds, 1) * share) / (
            counts.sum(-1, keepdims=True) + np.maximum(kinds, 1)
        )
    return float(-np.log2(share[held_out[:-2], held_out[1:-1], held_out[2:]]).mean())


def built(config: Config, vocabulary: int):
    """Return the network and the task of a configuration."""
    network = models.transformer(
        vocabulary=vocabulary,
        context=config.context,
        layers=config.layers,
        width=config.width,
        dropout=config.dropout,
    )
    task = trainer.supervised(
        network,
        losses.language_modeling,
        configuration.optimizer(config, config.epochs * config.steps_per_epoch),
        accumulate=config.optimizer.accumulate,
        clip_norm=config.optimizer.clip_norm,
        precision=config.precision,
    )
    return network, task


def language(checkpoint):
    """Return the network of a checkpoint, its state, and its tokenizer, to generate text with."""
    config = trainer.load_config(checkpoint.directory / "config.yaml", Config)
    tokenizer = Characters("".join(sorted(set(prose()))))
    network, task = built(config, len(tokenizer.known))
    example = {"inputs": jnp.zeros((1, config.context), jnp.int32)}
    state = checkpoint.restore(task.init(jax.random.key(config.seed), example))
    return network, state, tokenizer


def main(config: Config) -> None:
    if config.context <= len(PROMPT):
        raise SystemExit(
            f"context must be longer than {PROMPT!r}, which it continues; got {config.context}"
        )
    writers = hooks.build_writers(config)
    text = prose()
    tokenizer = Characters("".join(sorted(set(text))))
    vocabulary = len(tokenizer.known)

    file = config.run / "text.tokens"
    file.parent.mkdir(parents=True, exist_ok=True)
    data.pack_tokens([text], file, vocabulary=vocabulary, encode=tokenizer.encode)
    train = data.Tokens(
        file,
        batch_size=config.batch_size,
        length=config.context,
        stride=max(1, config.context // 8),
        part=(0, TRAINED),
        steps_per_epoch=config.steps_per_epoch,
    )
    val = data.Tokens(file, batch_size=64, length=config.context, part=(TRAINED, 1))
    border = int(TRAINED * len(text))
    parts = tokenizer.encode(text[:border]), tokenizer.encode(text[border:])
    baseline = trigram_bits(*parts, vocabulary)

    network, task = built(config, vocabulary)
    validation = trainer.evaluation(task.measure, val)

    samples = hooks.show_samples(
        network,
        tokenizer,
        [PROMPT],
        *writers,
        length=config.context - len(PROMPT),
        temperature=0.8,
        stop=(),
    )

    def init():
        return task.init(jax.random.key(config.seed), train.example)

    split = "fsdp+tensor" if "model" in config.mesh else "fsdp"
    state, _ = trainer.fit(
        trainer.spread(init, trainer.mesh(config.mesh), rules=models.transformer_rules(split))
        if config.mesh
        else init(),
        trainer.training(task.step, train),
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.evaluate(validation),
            hooks.stop_on_nan(),
            hooks.every(5, samples),
            hooks.build_hooks(config, writers=writers, given={"val": validation}),
        ),
    )
    bits = trainer.evaluate(state, validation)["val/bits_per_character"]
    print(f"held out: {bits:.3f} bits per character, a trigram model {baseline:.3f}")
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
