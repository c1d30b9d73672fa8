"""Other trainers on the same data: the same layers, batch size, optimizer, and steps an epoch.

Each function returns `run(epochs)`, which trains on and returns when all is computed.
"""

import importlib.util
import logging
import os
import warnings

import jax
import numpy as np
import optax

RATE, DECAY, EPSILON = 1e-3, 1e-4, 1e-8
"""Of AdamW, as `optax.adamw(1e-3)` has them; the others' own defaults differ."""


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def peers(network, arrays, batch_size):
    """Name the trainers that are installed, and make each.

    Args:
        network: `mlp` or `cnn`.
        arrays: `inputs` `[examples, 8, 8, 1]` and `labels` `[examples]`, whole batches only.
        batch_size: examples a step.
    """
    steps = len(arrays["labels"]) // batch_size
    found = {"Flax NNX, usual loop": flax_loop(network, arrays, batch_size)}
    if installed("keras"):
        found["Keras"] = keras_fit(network, arrays, batch_size, 1)
        found["Keras, steps_per_execution=epoch"] = keras_fit(network, arrays, batch_size, steps)
    if installed("lightning", "torch"):
        found["Lightning"] = lightning_fit(network, arrays, batch_size)
    return found


def flax_loop(network, arrays, batch_size):
    """Train as Flax's own pages do: `nnx.jit` over a module and an `nnx.Optimizer`."""
    from flax import nnx

    from models.cnn import CNN
    from models.mlp import MLP

    if network == "mlp":
        model = MLP((64, 128, 128, 10), dropout=0.0, rngs=nnx.Rngs(0))
    else:
        model = CNN(
            (8, 8, 1),
            classes=10,
            channels=(32, 64),
            hidden=128,
            batch_norm=False,
            dropout=0.0,
            rngs=nnx.Rngs(0),
        )
    optimizer = nnx.Optimizer(model, optax.adamw(RATE), wrt=nnx.Param)
    shuffling = np.random.default_rng(0)

    @nnx.jit
    def step(model, optimizer, inputs, labels):
        def objective(model):
            logits = model(inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = nnx.value_and_grad(objective)(model)
        optimizer.update(model, grads)
        return loss

    def run(epochs):
        for _ in range(epochs):
            order = shuffling.permutation(len(arrays["labels"])).reshape(-1, batch_size)
            batches = ((arrays["inputs"][places], arrays["labels"][places]) for places in order)
            losses = [step(model, optimizer, inputs, labels) for inputs, labels in batches]
            float(np.mean(jax.device_get(losses)))
        jax.block_until_ready(nnx.state((model, optimizer)))

    return run


def keras_fit(network, arrays, batch_size, steps_per_execution):
    """Train with `Model.fit` on the JAX backend, which reports loss and accuracy an epoch."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    if network == "mlp":
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
    model = keras.Sequential([layers.Input((8, 8, 1)), *body, layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=DECAY, epsilon=EPSILON),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )

    def run(epochs):
        model.fit(
            arrays["inputs"], arrays["labels"], batch_size=batch_size, epochs=epochs, verbose=0
        )
        jax.block_until_ready([variable.value for variable in model.variables])

    return run


def lightning_fit(network, arrays, batch_size):
    """Train with `Trainer.fit`, which reports the mean loss an epoch and has nothing else to do."""
    import lightning
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if network == "mlp":
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

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*body, nn.Linear(128, 10))

        def training_step(self, batch, number):
            inputs, labels = batch
            loss = nn.functional.cross_entropy(self.layers(inputs), labels)
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), RATE, weight_decay=DECAY, eps=EPSILON)

    inputs = torch.tensor(arrays["inputs"]).permute(0, 3, 1, 2).contiguous()
    data = TensorDataset(inputs, torch.tensor(arrays["labels"]).long())
    loader = DataLoader(data, batch_size, shuffle=True)
    model = Classifier()

    def run(epochs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(
                max_epochs=epochs,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(model, loader)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run
