"""Lightning, `Trainer.fit`, which reports the mean loss an epoch.

Usual: the defaults: a progress bar, a logger, checkpoints. Fastest: nothing else to do.
"""

import logging
import warnings

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from contestants.torch_networks import build, compute_loss, load_tensors

NOTHING_ELSE = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(lightning.LightningModule):
    """A network with its loss and optimizer."""

    def __init__(self, workload):
        super().__init__()
        self.network, self.settings = build(workload), workload.optimizer

    def training_step(self, batch, number):
        loss = compute_loss(self.network, *batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        settings = self.settings
        return torch.optim.AdamW(
            self.parameters(), settings.rate, weight_decay=settings.decay, eps=settings.epsilon
        )


def usual(workload):
    """Train with the defaults; they write into the working directory."""
    return fit(workload, {})


def nothing_else(workload):
    """Train without a progress bar, a logger and checkpoints."""
    return fit(workload, NOTHING_ELSE)


def fit(workload, settings):
    """Build `run`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    dataset = TensorDataset(*load_tensors(workload.arrays))
    loader = DataLoader(dataset, workload.batch_size, shuffle=True)
    model = Classifier(workload)

    def run(epochs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(max_epochs=epochs, **settings).fit(model, loader)

    return run
