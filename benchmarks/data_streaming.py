"""What does it cost to read the data from files, rather than from the device?

Baseline: the same phase over `data.Arrays`, which lives on the device and is shuffled there.

Measured: `data.MemoryMap` over `.npy` files of digits' shapes (8x8 images, noise), an MLP of two
hidden layers, batches of 64; and `data.Tokens` over a file of random tokens, a small transformer,
batches of 16 windows. On both sides AdamW and `fit`; the shuffle, the gathering and the transfer
are part of the time, and the files, some tens of MB, are in the page cache: this is not about the
speed of a disk. A figure is one call of `fit` that takes about a second. Contestants take turns;
ratios are taken round by round.
"""

import math
import tempfile
from pathlib import Path

import _measuring
import jax
import numpy as np
import optax

import models
import trainer
from trainer import data, losses

RESIDENT, STREAMED = "on the device", "from files"
LEAST = 0.9
BATCH_SIZE, CLASSES = 64, 10
WINDOWS, LENGTH, VOCABULARY = 16, 64, 256
"""Of the transformer: windows a step, tokens of one, and the size of the vocabulary."""


def images(folder, steps):
    """Build the same noise on the device and in files, for this many steps a pass."""
    random = np.random.default_rng(0)
    arrays = {
        "inputs": random.random((steps * BATCH_SIZE, 8, 8, 1), np.float32),
        "labels": random.integers(0, CLASSES, steps * BATCH_SIZE).astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    files = {name: folder / f"{name}.npy" for name in arrays}
    return data.Arrays(arrays, BATCH_SIZE), data.MemoryMap(files, BATCH_SIZE)


def text(folder, tokens, steps):
    """Pack noise into a file, and put the windows of an epoch on the device."""
    file = folder / "noise.tokens"
    noise = np.random.default_rng(0).integers(0, VOCABULARY, tokens, np.uint8)
    data.pack_tokens([noise], file, vocabulary=VOCABULARY)
    places = LENGTH * np.arange(steps * WINDOWS)[:, None] + np.arange(LENGTH)
    arrays = {
        "inputs": noise[places].astype(np.int32),
        "labels": noise[places + 1].astype(np.int32),
    }
    return data.Arrays(arrays, WINDOWS), data.Tokens(
        file, batch_size=WINDOWS, length=LENGTH, steps_per_epoch=steps
    )


def rate(network, loss, source, seconds):
    """Build a function that trains for this long, and gives the steps per second."""
    task = trainer.supervised(network, loss, optax.adamw(1e-3))
    start = task.init(jax.random.key(0), source.example)
    phase = trainer.training(task.step, source)

    def run(epochs):
        state, _ = trainer.fit(start, phase, epochs=epochs)
        jax.block_until_ready(state)

    run(1)  # compiles
    epochs = max(1, math.ceil(seconds / _measuring.timed(lambda: run(1)))) if seconds else 1
    return lambda: epochs * phase.steps_per_epoch / _measuring.timed(lambda: run(epochs))


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (15, 1.0)
    layers, width, passed, tokens, stretch = (
        (1, 16, 40, 10**5, 4) if options.quick else (2, 64, 2500, 2 * 10**7, 100)
    )
    transformer = models.transformer(
        vocabulary=VOCABULARY, context=LENGTH, layers=layers, heads=4, width=width
    )
    measured, ratios, bars = {}, {}, []
    with tempfile.TemporaryDirectory() as directory:
        cases = {
            "mlp": (models.mlp(classes=CLASSES), losses.classification, images, (passed,)),
            "lm": (transformer, losses.language_modeling, text, (tokens, stretch)),
        }
        for name, (network, loss, sources, sizes) in cases.items():
            resident, streamed = sources(Path(directory), *sizes)
            contestants = {
                RESIDENT: rate(network, loss, resident, seconds),
                STREAMED: rate(network, loss, streamed, seconds),
            }
            samples = _measuring.interleaved(contestants, rounds=rounds)
            measured[name] = {entrant: _measuring.spread(f) for entrant, f in samples.items()}
            what = f"{STREAMED} / {RESIDENT}"
            ratios[name] = {what: _measuring.ratio(samples[STREAMED], samples[RESIDENT])}
            bars.append(
                _measuring.bar(f"{name}: {what}", ratios[name][what]["median"], least=LEAST)
            )
            rows = [(e, *_measuring.columns(figures)) for e, figures in measured[name].items()]
            rows += [(what, *_measuring.columns(figures)) for what, figures in ratios[name].items()]
            _measuring.show(f"{name}: steps per second", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "data_streaming",
        unit="steps/s",
        warm_up="compilation, an epoch, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        superbatch=streamed.superbatch,
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
