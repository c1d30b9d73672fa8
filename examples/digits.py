"""Train a network on real handwritten digits. Run it again, and it resumes where it stopped.

python examples/digits.py --epochs 20 --network cnn
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax
import optax
import tyro
from rich.logging import RichHandler

import hooks
import models
import trainer
from trainer import data, losses


@dataclasses.dataclass(frozen=True)
class Config:
    run: Path = Path("runs/digits")
    """Where checkpoints and TensorBoard files go, and where a run resumes from."""
    epochs: int = 20
    """The total that the run shall reach."""
    seed: int = 0
    batch_size: int = 64
    network: Literal["cnn", "mlp"] = "cnn"
    fresh: bool = False
    """Refuse to resume: start anew, in a directory that is empty or absent."""


def main(config: Config) -> None:
    if config.fresh and config.run.exists() and any(config.run.iterdir()):
        raise SystemExit(f"--fresh needs an empty or absent directory; {config.run} holds a run")

    train, val = data.digits(batch_size=config.batch_size)
    network = {"cnn": models.cnn, "mlp": models.mlp}[config.network](classes=10)
    task = trainer.supervised(network, losses.classification, optax.adamw(1e-3))

    state, _ = trainer.fit(
        task.init(jax.random.key(config.seed), train.example),
        trainer.training(task.step, train),
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.evaluate(trainer.evaluation(task.measure, val)),
            hooks.stop_on_nan(),
            hooks.watch_system(batch_size=config.batch_size),
            hooks.log_metrics(hooks.Console(), hooks.TensorBoard(config.run)),
            hooks.save_checkpoints(
                config.run,
                best="val/accuracy",
                mode="max",
                config={k: v for k, v in dataclasses.asdict(config).items() if k not in PLACE},
            ),
        ),
    )
    print("fingerprint", trainer.fingerprint(state))


PLACE = ("run", "fresh")
"""Settings that say where results go, and nothing about the run."""

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(show_path=False)], force=True)
    logging.getLogger("entracte").setLevel(logging.INFO)
    main(tyro.cli(Config, description=__doc__))
