"""Measures of a split, what shows them, and exports, of a state split over two processes."""

from __future__ import annotations

import json

import jax
import numpy as np
from pairs import Pair
from sklearn import metrics as sklearn_metrics

CHILD = """
import json, sys
import flax, jax, jax.numpy as jnp, numpy as np, optax

run, rank, count, port = sys.argv[1], *map(int, sys.argv[2:5])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import hooks, models, trainer
from trainer import data, losses, measures

@flax.struct.dataclass
class Largest:
    value: jax.Array
    def merge(self, other):
        return Largest(max(self.value, other.value))
    def compute(self):
        return self.value

rng = np.random.default_rng(0)
inputs = rng.random((26, 8), np.float32)
arrays = {"inputs": inputs, "labels": (inputs[:, :3] + rng.random((26, 3))).argmax(1)}
train = data.Arrays(arrays, 8)
task = trainer.supervised(models.mlp(classes=3, hidden=()), losses.classification, optax.adam(0.1))
measured = [
    task.measure,
    measures.auc(task.outputs),
    measures.confusion_matrix(task.outputs, classes=3),
    measures.calibration_error(task.outputs),
    measures.bleu(lambda state, batch: ((batch["inputs"] * 3).astype(int),) * 2),
    measures.merged(lambda state, batch: {"largest": Largest(task.outputs(state, batch).max())}),
]
rules = [("^params/", trainer.fsdp())]
start = trainer.spread(lambda: task.init(jax.random.key(0), train.example), rules=rules)
splits = {"val": train, "rows": data.MemoryMap(arrays, 8)}
phases = [trainer.evaluation(measured, split, name=name) for name, split in splits.items()]
chain = hooks.chain(
    *map(hooks.evaluate, phases),
    hooks.log_metrics(hooks.JsonLines(run + "/metrics.jsonl")),
    hooks.write_report(run + "/report.html", records=run + "/metrics.jsonl"),
)
state, history = trainer.fit(start, trainer.training(task.step, train), epochs=2, hooks=chain)
trainer.export(task.network if hasattr(task, "network") else models.mlp(classes=3, hidden=()), state.params, train.example, run + "/net.jaxexport")
"""


def test_all():
    pass
