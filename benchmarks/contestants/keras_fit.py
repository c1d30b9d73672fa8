"""Keras on JAX, `Model.fit`, which reports the mean loss an epoch, and for images the accuracy.

Usual: the defaults. Fastest: `steps_per_execution` of a whole epoch, so that one is one call.
"""

import math
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from keras import layers, ops

from contestants.workloads import TEXT


def usual(workload):
    """Train a step at a time."""
    return fit(workload, 1)


def whole_epochs(workload):
    """Train an epoch at a time."""
    return fit(workload, workload.steps)


def fit(workload, steps_per_execution):
    """Build `run`."""
    is_text = workload.network == TEXT
    model = transformer(workload.size) if is_text else classifier(workload.network)
    settings = workload.optimizer
    model.compile(
        optimizer=keras.optimizers.AdamW(
            settings.rate, weight_decay=settings.decay, epsilon=settings.epsilon
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=None if is_text else ["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    inputs, labels = workload.arrays["inputs"], workload.arrays["labels"]

    def run(epochs):
        model.fit(inputs, labels, batch_size=workload.batch_size, epochs=epochs, verbose=0)
        jax.block_until_ready([variable.value for variable in model.variables])

    return run


def classifier(network):
    """Build the MLP or the CNN."""
    if network == "MLP":
        body = [layers.Flatten(), *(layers.Dense(128, activation="relu") for _ in range(2))]
    else:
        body = [
            layers.Conv2D(32, 3, padding="same"),
            layers.MaxPooling2D(),
            layers.ReLU(),
            layers.Conv2D(64, 3, padding="same"),
            layers.MaxPooling2D(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
        ]
    return keras.Sequential([layers.Input((8, 8, 1)), *body, layers.Dense(10)])


def transformer(size):
    """Build our transformer: norms by the root mean square, rotary positions, no biases."""
    head = size.width // size.heads
    frequencies = 10_000.0 ** (-np.arange(0, head, 2) / head)
    angles = np.arange(size.context)[:, None, None] * frequencies
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rotate(heads):
        first, second = ops.split(heads, 2, axis=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return ops.concatenate(turned, axis=-1)

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.dense_norm = (layers.RMSNormalization() for _ in range(2))
            self.qkv = layers.Dense(3 * size.width, use_bias=False)
            self.out = layers.Dense(size.width, use_bias=False)
            self.up = layers.Dense(4 * size.width, use_bias=False)
            self.down = layers.Dense(size.width, use_bias=False)

        def call(self, x):
            batch, time, width = ops.shape(x)
            heads = batch, time, size.heads, width // size.heads
            parts = ops.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
            query, key, value = (ops.reshape(part, heads) for part in parts)
            mixed = ops.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
            x = x + self.out(ops.reshape(mixed, (batch, time, width)))
            return x + self.down(ops.gelu(self.up(self.dense_norm(x))))

    class Transformer(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = layers.Embedding(size.vocabulary, size.width)
            self.blocks = [Block() for _ in range(size.layers)]
            self.norm = layers.RMSNormalization()

        def call(self, tokens):
            x = self.embed(tokens) * math.sqrt(size.width)
            for block in self.blocks:
                x = block(x)
            return ops.matmul(self.norm(x), ops.transpose(self.embed.embeddings))

    model = Transformer()
    model(np.zeros((1, size.context), np.int32))
    return model
