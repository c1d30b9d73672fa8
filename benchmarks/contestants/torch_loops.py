"""PyTorch in a loop.

Plain: the usual loop over a `DataLoader`. Fastest: batches that are indexed in tensors, a fused
optimizer, one thread for the MLP, and perhaps `torch.compile`.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from contestants.torch_networks import build, compute_loss, load_tensors


def plain(workload):
    """Train eagerly, with batches of a `DataLoader`."""
    dataset = TensorDataset(*load_tensors(workload.arrays))
    loader = DataLoader(dataset, workload.batch_size, shuffle=True)
    return loop(workload, build(workload), lambda: loader, fused=None)


def indexed(workload):
    """Train eagerly, with batches indexed in tensors and a fused optimizer."""
    return loop(workload, build(workload), index_batches(workload), fused=True)


def compiled(workload):
    """Train a compiled network, else as `indexed`."""
    network = torch.compile(build(workload))
    return loop(workload, network, index_batches(workload), fused=True)


def index_batches(workload):
    """Build a function that gives the batches of an epoch, shuffled."""
    if workload.network == "MLP":
        torch.set_num_threads(1)  # its layers are too small for two
    inputs, labels = load_tensors(workload.arrays)

    def iter_batches():
        for places in torch.randperm(len(inputs)).split(workload.batch_size):
            yield inputs[places], labels[places]

    return iter_batches


def loop(workload, network, get_batches, *, fused):
    """Build `run`, which reads the mean loss once an epoch."""
    settings = workload.optimizer
    rates = np.broadcast_to(np.float32(settings.rate), workload.steps).tolist()
    optimizer = torch.optim.AdamW(
        network.parameters(),
        rates[0],
        betas=(0.9, settings.beta2),
        weight_decay=settings.decay,
        eps=settings.epsilon,
        fused=fused,
    )

    def run(epochs):
        for _ in range(epochs):
            total = torch.zeros(())
            for rate, batch in zip(rates, get_batches(), strict=True):
                if rate != optimizer.param_groups[0]["lr"]:
                    optimizer.param_groups[0]["lr"] = rate
                loss = compute_loss(network, *batch)
                optimizer.zero_grad()
                loss.backward()
                if settings.clip_norm:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                optimizer.step()
                total += loss.detach()
            float(total / workload.steps)
        return {"held-out loss": evaluate(workload, network)} if workload.held_out else None

    return run


def evaluate(workload, network):
    """Return the mean loss on what is held out."""
    inputs, labels = load_tensors(workload.held_out)
    batches = zip(inputs.split(workload.batch_size), labels.split(workload.batch_size), strict=True)
    with torch.no_grad():
        return float(np.mean([float(compute_loss(network, *batch)) for batch in batches]))
