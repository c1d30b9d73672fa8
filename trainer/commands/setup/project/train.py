"""Train a network on handwritten digits. Run again, it resumes where it stopped."""

from dataclasses import dataclass
from pathlib import Path

import hooks
import jax
import models
import trainer
from trainer import configuration, data, losses

from my_hooks import measure_gap


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    """The settings: those that training scripts share, and this script's own."""

    run: Path = Path("runs/digits")
    hidden: tuple[int, ...] = (128,)
    """Sizes of the hidden layers."""


def main(config: Config) -> None:
    """Train, evaluate after each epoch, and write the measurements to `config.run`."""
    train, val = data.digits(batch_size=config.batch_size)
    task = trainer.supervised(
        models.mlp(hidden=config.hidden, classes=10),
        losses.classification,
        configuration.optimizer(config, config.epochs * train.training().steps),
    )
    trainer.fit(
        task.init(jax.random.key(config.seed), train.example),
        trainer.training(task.step, train),
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.evaluate(trainer.evaluation(task.measure, val)),
            measure_gap,
            hooks.build_hooks(config),
        ),
    )


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
