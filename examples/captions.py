"""Train a network that describes scenes of real handwritten digits: "a three left of a seven".

Some combinations of digits and places are held out: training never shows them, and the network must
combine the words it learned. Run it again, and it resumes where it stopped.

python examples/captions.py --epochs 12
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from sklearn.datasets import load_digits

import hooks
import models
import trainer
from trainer import configuration, data, losses
from trainer.configuration import Checkpointing, Optimizer, Schedule

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PLACES = ("left of", "above")
WORDS = ("<end>", "a", "an", "left", "of", "above", *DIGITS)
LENGTH = 7
"""Tokens of the longest caption, its end included."""
SIZE = 20
"""Side of a scene, in pixels."""


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/captions")
    epochs: int = 12
    scenes: int = 16_384
    """Training scenes, drawn once from the seed."""
    held_out: float = 0.2
    """Share of the combinations (digit, place, digit) that training never sees."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0)
    schedule: Schedule = Schedule("cosine", warmup_share=0.05)
    checkpointing: Checkpointing = Checkpointing(best="held_out/exact_match")


def caption(first: int, place: int, second: int) -> list[int]:
    """Return the words of a scene as tokens, up to the end."""
    one, other = (("an " if n == 8 else "a ") + DIGITS[n] for n in (first, second))
    sentence = f"{one} {PLACES[place]} {other} <end>"
    return [WORDS.index(word) for word in sentence.split()]


def words(tokens: np.ndarray) -> str:
    """Read tokens up to the first end."""
    return " ".join(WORDS[token] for token in tokens).partition(" <end>")[0]


def scenes(combinations: np.ndarray, images: dict, count: int, seed: int) -> dict:
    """Compose scenes: two digits, side by side or one above the other, each somewhere in its half.

    Args:
        combinations: `[combinations, 3]` of digit, place, digit, to draw from.
        images: digit to its pictures `[pictures, 8, 8]`.
        count: of scenes.
        seed: of all that is drawn.
    """
    random = np.random.default_rng(seed)
    pixels = np.zeros((count, SIZE, SIZE, 1), np.float32)
    tokens, mask = np.zeros((count, LENGTH + 1), np.int32), np.zeros((count, LENGTH), bool)
    for scene, pick in enumerate(random.integers(len(combinations), size=count)):
        first, place, second = combinations[pick]
        for half, digit in enumerate((first, second)):
            along, across = random.integers(3) + 10 * half, random.integers(4, 9)
            row, column = (across, along) if PLACES[place] == "left of" else (along, across)
            picture = images[digit][random.integers(len(images[digit]))]
            pixels[scene, row : row + 8, column : column + 8, 0] = picture
        sentence = caption(first, place, second)
        tokens[scene, 1 : len(sentence) + 1] = sentence
        mask[scene, : len(sentence)] = True
    return {
        "inputs": {"image": pixels, "tokens": tokens[:, :-1]},
        "labels": tokens[:, 1:],
        "mask": mask,
    }


def drawn(config: Config) -> tuple[data.Arrays, dict[str, data.Arrays]]:
    """Draw scenes for training and for evaluation, of seen and of held-out combinations."""
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) / 16).astype(np.float32)
    random = np.random.default_rng(config.seed)
    order = random.permutation(len(labels))
    train, rest = order[:1437], order[1437:]  # no image is in both

    def by_digit(places: np.ndarray) -> dict:
        return {digit: pictures[places[labels[places] == digit]] for digit in range(10)}

    every = np.stack(np.meshgrid(range(10), range(2), range(10), indexing="ij"), -1).reshape(-1, 3)
    every = random.permutation(every)
    out = round(config.held_out * len(every))
    if not 0 < out < len(every):
        raise SystemExit(f"held-out must leave combinations on both sides; got {config.held_out}")
    measured = {"seen": every[out:], "held_out": every[:out]}
    trained = scenes(every[out:], by_digit(train), config.scenes, config.seed)
    return data.Arrays(trained, config.batch_size), {
        name: data.Arrays(scenes(combinations, by_digit(rest), 512, config.seed + 1), 128)
        for name, combinations in measured.items()
    }


def main(config: Config) -> None:
    train, measured = drawn(config)
    network = models.captioner(
        vocabulary=len(WORDS),
        context=LENGTH,
        channels=1,
        patch=4,
        encoder_layers=2,
        layers=2,
        heads=4,
        width=64,
    )
    task = trainer.supervised(
        network,
        losses.captioning,
        configuration.optimizer(config, config.epochs * train.training().steps),
        accumulate=config.optimizer.accumulate,
        clip_norm=config.optimizer.clip_norm,
        precision=config.precision,
    )
    phases = {
        name: trainer.evaluation(task.measure, source, name=name)
        for name, source in measured.items()
    }
    writers = hooks.build_writers(config)
    shown = measured["held_out"].arrays

    def describe(state, metrics):
        """Write the captions of a few held-out scenes, word by word."""
        image, tokens = (shown["inputs"][name][:4] for name in ("image", "tokens"))
        written = models.generate(
            network,
            state.params,
            {"image": image, "tokens": tokens[:, :1]},
            length=LENGTH - 1,
            key=state.key("hook/held_out"),
            temperature=0,
        )
        said, wanted = map(np.asarray, (written.tokens, shown["labels"][:4]))
        lines = [
            f"{words(one)}  (it is {words(other)})" for one, other in zip(said, wanted, strict=True)
        ]
        return {
            "scenes": hooks.image_grid(np.asarray(image).repeat(6, 1).repeat(6, 2), columns=4),
            "captions": hooks.Text("\n".join(lines)),
        }

    state, _ = trainer.fit(
        task.init(jax.random.key(config.seed), train.example),
        trainer.training(task.step, train),
        epochs=config.epochs,
        hooks=hooks.chain(
            *map(hooks.evaluate, phases.values()),
            hooks.stop_on_nan(),
            hooks.every(4, hooks.record("held_out", describe, *writers)),
            hooks.build_hooks(config, writers=writers, given=phases),
        ),
    )
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
