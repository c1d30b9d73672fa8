"""Train a network on real handwritten digits. Run it again, and it resumes where it stopped.

python examples/digits.py --epochs 20 --network cnn
entracte evaluate --suite examples/digits.py:suite --runs digits --idle 0
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import optax

import hooks
import models
import trainer
from trainer import configuration, data, evaluators, losses
from trainer.configuration import Checkpointing
from trainer.data import augmentation

NETWORKS = {"cnn": models.cnn, "mlp": models.mlp, "resnet": models.resnet}


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/digits")
    network: Literal["cnn", "mlp", "resnet"] = "cnn"
    augment: bool = False
    """Move each image by up to a pixel in training."""
    checkpointing: Checkpointing = Checkpointing(best="val/accuracy")


def suite() -> evaluators.Suite:
    """Evaluate checkpoints of the CNN exactly, on held-out digits."""
    _, val = data.digits(batch_size=64)
    task = trainer.supervised(models.cnn(classes=10), losses.classification, optax.identity())
    return evaluators.Suite(
        "digits",
        lambda: task.init(jax.random.key(0), val.example),
        trainer.evaluation(task.measure, val, name="exam"),
    )


def main(config: Config) -> None:
    train, val = data.digits(batch_size=config.batch_size)
    steps = config.epochs * train.training().steps
    task = trainer.supervised(
        NETWORKS[config.network](classes=10),
        losses.classification,
        configuration.optimizer(config, steps),
        augment=augmentation.shift(1) if config.augment else None,
        accumulate=config.optimizer.accumulate,
        clip_norm=config.optimizer.clip_norm,
        precision=config.precision,
    )
    validation = trainer.evaluation(task.measure, val)

    state, _ = trainer.fit(
        task.init(jax.random.key(config.seed), train.example),
        trainer.training(task.step, train),
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.evaluate(validation),
            hooks.stop_on_nan(),
            hooks.watch_system(batch_size=config.batch_size),
            hooks.build_hooks(config, given={"val": validation}),
        ),
    )
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
