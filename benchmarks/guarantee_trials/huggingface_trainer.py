"""The Trainer of transformers: `train(resume_from_checkpoint=True)`, `EarlyStoppingCallback`.

With `seed`, `data_seed`, and `restore_callback_states_from_checkpoint=True`.
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.trainer_utils import get_last_checkpoint

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

torch.set_num_threads(2)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = build_layers()

    def forward(self, inputs, labels):
        logits = self.network(inputs)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def build(folder, chain, *, compute_metrics=None, **settings):
    """Build a trainer with a model of the same seed."""
    transformers.set_seed(0)
    inputs, labels = (torch.from_numpy(array) for array in load_digits())
    examples = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels.long(), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=1e-4,
        seed=0,
        data_seed=0,
        restore_callback_states_from_checkpoint=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return transformers.Trainer(
        Classifier(),
        arguments,
        train_dataset=examples,
        eval_dataset=examples[:BATCH],
        compute_metrics=compute_metrics,
        callbacks=chain,
    )


class CountSteps(transformers.TrainerCallback):
    def __init__(self, steps):
        self.steps, self.began = steps, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.steps()


def train(trial):
    counting = CountSteps(trial.steps)
    chain, settings = [counting], {"save_strategy": "epoch"}
    if trial.every == "half":
        settings = {"save_strategy": "steps", "save_steps": HALF_EPOCH}
    if trial.watched:
        chain.append(transformers.EarlyStoppingCallback(PATIENCE))
        watched = "val_loss" if trial.watched == "loss" else trial.watched
        settings |= {
            "eval_strategy": "epoch",
            "metric_for_best_model": watched,
            "greater_is_better": False,
            "load_best_model_at_end": True,
        }

    def score(predictions):
        return {"val_loss": SCRIPTED[round(trainer.state.epoch) - 1]}

    epochs = {"num_train_epochs": trial.epochs}
    trainer = build(trial.folder, chain, compute_metrics=score, **epochs, **settings)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trial.folder) is not None)
    weights = trainer.model.parameters()
    return counting.began, [weight.detach().numpy() for weight in weights]


def find_newest(folder):
    return Path(get_last_checkpoint(folder))


def show_order(folder):
    logged = []

    class Record(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, model, **kwargs):
            logged.append(float(model.network[-1].bias[0]))

    class Decide(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, model, **kwargs):
            nn.init.constant_(model.network[-1].bias, DECIDED)

    chain = [Record(), Decide()]
    build(folder, chain, num_train_epochs=1, save_strategy="epoch").train()
    saved = load_file(find_newest(folder) / "model.safetensors")
    holds = float(saved["network.6.bias"][0]) == DECIDED
    return {"logger": logged == [DECIDED], "checkpoint": holds}


class StopWhenAccurate(transformers.TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        control.should_training_stop = metrics["eval_accuracy"] > 0.9


def test_callback():
    control = transformers.TrainerControl()
    StopWhenAccurate().on_evaluate(None, None, control, {"eval_accuracy": 0.95})
    assert control.should_training_stop


class Nothing(transformers.TrainerCallback):
    def on_epoch_end(self, args, state, control, **kwargs):
        pass


def prepare_epochs(epochs):
    settings = {"num_train_epochs": epochs, "save_strategy": "no", "logging_strategy": "no"}

    def run(number):
        chain = [Nothing() for _ in range(number)]
        build("unused", chain, **settings).train()

    return run
