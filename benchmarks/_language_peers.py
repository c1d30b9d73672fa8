"""Other trainers of a transformer: our layers in each, the same windows, optimizer and precision.

The layers: root mean square norms, attention with rotary positions, a dense branch with a GELU, no
biases, embeddings that are also the weights of the logits. The parameters are counted against ours.
Each function returns `run(epochs)`, which trains on and returns when all is computed.
"""

import math
import os

import jax
import numpy as np
from _peers import DECAY, EPSILON, RATE, installed


def peers(size, arrays, parameters):
    """Name the trainers that are installed, and make each.

    Args:
        size: `language_model.Size`.
        arrays: `inputs` and `labels`, int32 `[windows, time]`, whole batches only.
        parameters: that each must have.
    """
    found = {}
    if installed("keras"):
        found["Keras"] = keras_fit(size, arrays, parameters)
    if installed("torch"):
        found["PyTorch"] = torch_loop(size, arrays, parameters)
    return found


def require_same(peer, parameters, ours):
    if parameters != ours:
        raise ValueError(f"{peer} has {parameters} parameters where the library has {ours}")


def turns(size):
    """Return cosines and sines of the rotary positions, float32 `[time, 1, size of a head / 2]`."""
    head = size.width // size.heads
    frequencies = 10_000.0 ** (-np.arange(0, head, 2) / head)
    angles = np.arange(size.context)[:, None, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def keras_fit(size, arrays, parameters):
    """Train with `Model.fit` on the JAX backend, which reports the loss an epoch."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers, ops

    cosines, sines = turns(size)
    if size.precision != "float32":
        keras.config.set_dtype_policy(f"mixed_{size.precision}")

    def rotate(heads):
        first, second = ops.split(ops.cast(heads, "float32"), 2, axis=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return ops.cast(ops.concatenate(turned, axis=-1), heads.dtype)

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
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=DECAY, epsilon=EPSILON),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs, labels = arrays["inputs"], arrays["labels"]
    model(inputs[: size.batch_size])
    require_same("Keras", model.count_params(), parameters)

    def run(epochs):
        model.fit(inputs, labels, batch_size=size.batch_size, epochs=epochs, verbose=0)
        jax.block_until_ready([variable.value for variable in model.variables])

    return run


def torch_loop(size, arrays, parameters):
    """Train in a loop, with the data on the device, and read the mean loss once an epoch."""
    import torch
    from torch import nn
    from torch.nn import functional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cosines, sines = (torch.tensor(part, device=device) for part in turns(size))

    def rotate(heads):
        first, second = heads.float().chunk(2, dim=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return torch.cat(turned, dim=-1).to(heads.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.dense_norm = (nn.RMSNorm(size.width) for _ in range(2))
            self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
            self.out = nn.Linear(size.width, size.width, bias=False)
            self.up = nn.Linear(size.width, 4 * size.width, bias=False)
            self.down = nn.Linear(4 * size.width, size.width, bias=False)

        def forward(self, x):
            batch, time, width = x.shape
            parts = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
            query, key, value = (p.view(batch, time, size.heads, -1) for p in parts)
            mixed = functional.scaled_dot_product_attention(
                *(heads.transpose(1, 2) for heads in (rotate(query), rotate(key), value)),
                is_causal=True,
            )
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
            hidden = functional.gelu(self.up(self.dense_norm(x)), approximate="tanh")
            return x + self.down(hidden)

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(size.vocabulary, size.width)
            nn.init.normal_(self.embed.weight, std=size.width**-0.5)
            self.blocks = nn.Sequential(*(Block() for _ in range(size.layers)))
            self.norm = nn.RMSNorm(size.width)

        def forward(self, tokens):
            x = self.blocks(self.embed(tokens) * math.sqrt(size.width))
            return functional.linear(self.norm(x), self.embed.weight)

    model = Transformer().to(device)
    require_same("PyTorch", sum(p.numel() for p in model.parameters()), parameters)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, eps=EPSILON)
    inputs, labels = (torch.tensor(arrays[name], device=device).long() for name in arrays)
    lower = torch.autocast(
        device.type, getattr(torch, size.precision), enabled=size.precision != "float32"
    )

    def run(epochs):
        for _ in range(epochs):
            total = torch.zeros((), device=device)
            order = torch.randperm(len(inputs), device=device)
            for places in order.split(size.batch_size):
                with lower:
                    logits = model(inputs[places])
                loss = functional.cross_entropy(
                    logits.float().flatten(0, 1), labels[places].ravel()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            float(total / size.steps)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run
