"""Lightning: `seed_everything`, `ModelCheckpoint(save_last=True)`, `fit(ckpt_path="last")`.

With torchdata's `StatefulDataLoader`, whose position Lightning saves.
"""

import logging
import types
import warnings

import lightning
import torch
from lightning.pytorch import callbacks
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from guarantee_trials.torch_layers import build_layers
from guarantee_trials.trial import (
    BATCH,
    DECIDED,
    HALF_EPOCH,
    PATIENCE,
    RATE,
    SCRIPTED,
    load_digits,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
torch.set_num_threads(2)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = build_layers()

    def training_step(self, batch, number):
        inputs, labels = batch
        return functional.cross_entropy(self.network(inputs), labels)

    def validation_step(self, batch, number):
        self.log("val_loss", SCRIPTED[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), RATE, weight_decay=1e-4)


def build():
    """Return (module, loader of training, loader of validation)."""
    lightning.seed_everything(0, verbose=False)
    inputs, labels = (torch.from_numpy(array) for array in load_digits())
    dataset = TensorDataset(inputs, labels.long())
    loader = StatefulDataLoader(dataset, BATCH, shuffle=True)
    return Classifier(), loader, DataLoader(TensorDataset(inputs[:BATCH]), BATCH)


class CountSteps(callbacks.Callback):
    def __init__(self, steps):
        self.steps, self.began = steps, None

    def on_train_start(self, trainer, module):
        self.began = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        self.steps()


def train(trial):
    module, loader, held_out = build()
    counting = CountSteps(trial.steps)
    when = {"every_n_train_steps": HALF_EPOCH} if trial.every == "half" else {"every_n_epochs": 1}
    saving = callbacks.ModelCheckpoint(trial.folder, save_last=True, save_top_k=-1, **when)
    chain = [counting, saving]
    if trial.watched:
        watched = f"val_{trial.watched}"
        chain.append(callbacks.EarlyStopping(watched, patience=PATIENCE, mode="min"))
    trainer = lightning.Trainer(max_epochs=trial.epochs, callbacks=chain, **QUIET)
    trainer.fit(module, loader, held_out, ckpt_path="last")
    return counting.began, [weight.detach().numpy() for weight in module.parameters()]


def find_newest(folder):
    return folder / "last.ckpt"


def show_order(folder):
    module, loader, held_out = build()
    logged = []

    class Record(callbacks.Callback):
        def on_train_epoch_end(self, trainer, module):
            logged.append(float(module.network[-1].bias[0]))

    class Decide(callbacks.Callback):
        def on_train_epoch_end(self, trainer, module):
            nn.init.constant_(module.network[-1].bias, DECIDED)

    saving = callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = lightning.Trainer(max_epochs=1, callbacks=[saving, Record(), Decide()], **QUIET)
    trainer.fit(module, loader, held_out)
    saved = torch.load(find_newest(folder), weights_only=True)["state_dict"]["network.6.bias"]
    return {"logger": logged == [DECIDED], "checkpoint": float(saved[0]) == DECIDED}


class StopWhenAccurate(callbacks.Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.callback_metrics["accuracy"] > 0.9


def test_callback():
    trainer = types.SimpleNamespace(callback_metrics={"accuracy": 0.95})
    StopWhenAccurate().on_train_epoch_end(trainer, None)
    assert trainer.should_stop


class Nothing(callbacks.Callback):
    def on_train_epoch_end(self, trainer, module):
        pass


def prepare_epochs(epochs):
    module, loader, _ = build()
    settings = {"enable_checkpointing": False, "max_epochs": epochs, **QUIET}

    def run(number):
        chain = [Nothing() for _ in range(number)]
        lightning.Trainer(callbacks=chain, **settings).fit(module, loader)

    return run
