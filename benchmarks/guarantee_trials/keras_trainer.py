"""Keras on JAX: `set_random_seed`, `BackupAndRestore(double_checkpoint=True)`, `EarlyStopping`."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import types

import jax
import keras
import numpy as np
from keras import callbacks, layers

from guarantee_trials.trial import (
    BATCH,
    DECIDED,
    DROPOUT,
    HALF_EPOCH,
    HIDDEN,
    PATIENCE,
    RATE,
    SCRIPTED,
    load_digits,
)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dropout(DROPOUT),
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dropout(DROPOUT),
            layers.Dense(10, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.AdamW(RATE, weight_decay=1e-4), loss=loss)
    return model


def fit(model, epochs, chain):
    inputs, labels = load_digits()
    model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=chain)


class CountSteps(callbacks.Callback):
    def __init__(self, steps):
        super().__init__()
        self.steps, self.began = steps, None

    def on_train_begin(self, logs=None):
        self.began = int(self.model.optimizer.iterations)

    def on_train_batch_end(self, batch, logs=None):
        self.steps()


class Validate(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = SCRIPTED[epoch]


def back_up(folder, every):
    frequency = HALF_EPOCH if every == "half" else "epoch"
    return callbacks.BackupAndRestore(
        folder / "backup", save_freq=frequency, double_checkpoint=True, delete_checkpoint=False
    )


def train(trial):
    model, counting = build(), CountSteps(trial.steps)
    chain = [Validate()]
    if trial.watched:
        watched = f"val_{trial.watched}"
        chain.append(callbacks.EarlyStopping(watched, patience=PATIENCE, mode="min"))
    chain += [back_up(trial.folder, trial.every), counting]
    fit(model, trial.epochs, chain)
    return counting.began, [np.asarray(weight) for weight in model.trainable_variables]


def find_newest(folder):
    return folder / "backup" / "latest.weights.h5"


def show_order(folder):
    logged = []

    class Record(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logged.append(read_bias(self.model))

    class Decide(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_layer("head").bias.assign(np.full(10, DECIDED))

    fit(build(), 1, [back_up(folder, "epoch"), Record(), Decide()])
    model = build()
    model.load_weights(find_newest(folder))
    return {"logger": logged == [DECIDED], "checkpoint": read_bias(model) == DECIDED}


def read_bias(model):
    return float(model.get_layer("head").bias[0])


class StopWhenAccurate(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = logs["accuracy"] > 0.9


def test_callback():
    callback = StopWhenAccurate()
    callback.set_model(types.SimpleNamespace())
    callback.on_epoch_end(0, {"accuracy": 0.95})
    assert callback.model.stop_training


class Nothing(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        pass


def prepare_epochs(epochs):
    model = build()

    def run(number):
        fit(model, epochs, [Nothing() for _ in range(number)])
        jax.block_until_ready([variable.value for variable in model.variables])

    return run
