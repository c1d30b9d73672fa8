"""The networks in PyTorch, layer by layer as ours are."""

import math

import torch
from torch import nn
from torch.nn import functional

from contestants.workloads import TEXT


def build(workload):
    """Build the network of a workload."""
    return Transformer(workload.size) if workload.network == TEXT else classifier(workload.network)


def load_tensors(arrays):
    """Return (inputs, labels); images have the channel first, as PyTorch has them."""
    inputs, labels = torch.tensor(arrays["inputs"]), torch.tensor(arrays["labels"]).long()
    if inputs.ndim == 4:
        return inputs.permute(0, 3, 1, 2).contiguous(), labels
    return inputs.long(), labels


def compute_loss(network, inputs, labels):
    """Return the mean cross-entropy."""
    logits = network(inputs)
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def classifier(network):
    """Build the MLP or the CNN."""
    if network == "MLP":
        sizes = ((64, 128), (128, 128))
        body = [nn.Flatten(), *(part for pair in sizes for part in (nn.Linear(*pair), nn.ReLU()))]
    else:
        body = [
            nn.Conv2d(1, 32, 3, padding="same"),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding="same"),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 128),
            nn.ReLU(),
        ]
    return nn.Sequential(*body, nn.Linear(128, 10))


class Block(nn.Module):
    """Causal self-attention with rotary positions, and a dense branch with a GELU."""

    def __init__(self, size):
        super().__init__()
        self.heads = size.heads
        self.attention_norm, self.dense_norm = (nn.RMSNorm(size.width) for _ in range(2))
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x, cosines, sines):
        batch, time, width = x.shape

        def rotate(heads):
            first, second = heads.chunk(2, dim=-1)
            turned = (first * cosines - second * sines, second * cosines + first * sines)
            return torch.cat(turned, dim=-1)

        parts = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.view(batch, time, self.heads, -1) for part in parts)
        mixed = functional.scaled_dot_product_attention(
            *(heads.transpose(1, 2) for heads in (rotate(query), rotate(key), value)),
            is_causal=True,
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        hidden = functional.gelu(self.up(self.dense_norm(x)), approximate="tanh")
        return x + self.down(hidden)


class Transformer(nn.Module):
    """Embeddings, which are also the weights of the logits, blocks and a norm; no biases."""

    def __init__(self, size):
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        nn.init.normal_(self.embed.weight, std=size.width**-0.5)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        head = size.width // size.heads
        frequencies = 10_000.0 ** (-torch.arange(0, head, 2) / head)
        angles = torch.arange(size.context)[:, None, None] * frequencies
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())

    def forward(self, tokens):
        x = self.embed(tokens) * math.sqrt(self.embed.embedding_dim)
        for block in self.blocks:
            x = block(x, self.cosines, self.sines)
        return functional.linear(self.norm(x), self.embed.weight)
