"""What goes wrong on one of two processes ends both within seconds, with one reason."""

from __future__ import annotations

import re
import time

import pytest
from pairs import Pair

pytestmark = pytest.mark.soak

CHILD = """
import pathlib, sys
import jax, numpy as np, optax

run, rank, count, port = sys.argv[1], *map(int, sys.argv[2:5])
fault = FAULT
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import hooks, models, trainer
from trainer import data, losses

wrong = rank == 1
rows = 320 - 32 * (wrong and fault == "data")
rng = np.random.default_rng(0)
arrays = {"inputs": rng.random((rows, 64), np.float32), "labels": np.arange(rows) % 10}
if wrong and fault == "values":
    arrays["inputs"][7] += 1
train = data.Arrays(arrays, 32)
network = models.mlp(classes=10, hidden=(16,))
task = trainer.supervised(network, losses.classification, optax.sgd(0.1))

def fail_alone(state, metrics):
    print("epoch", int(state.epoch), flush=True)
    if state.epoch == 2:
        if wrong and fault == "control":
            raise OSError("the disk of one is gone")
        if wrong and fault == "stop":
            return state.replace(stop=True)
    return state

@hooks.observe
def observe_alone(state, metrics):
    if state.epoch == 2 and fault == "observer":
        raise OSError("the disk of one is gone")
    if state.epoch == 2 and fault == "split":
        np.asarray(jax.tree.leaves(state.params)[3])
    return state

measure = trainer.evaluation(task.measure, train)
chain = [fail_alone, hooks.evaluate(measure), observe_alone]
folder = run if not (wrong and fault == "directory") else run + "/elsewhere"
if fault == "unshared":  # the same path, where each process has a directory of its own
    from trainer.checkpoints.storage import shared_directory
    shared_directory.WAIT_SECONDS = 1.0
    if wrong:
        pathlib.Path.exists = lambda path, **options: False
if not (wrong and fault == "chain"):
    chain.append(hooks.save_checkpoints(folder, max_cost=None))
rules = [("^params/", trainer.fsdp())]
start = trainer.spread(lambda: task.init(jax.random.key(0), train.example), rules=rules)
trainer.fit(start, trainer.training(task.step, train), epochs=6, hooks=hooks.chain(*chain))
print("final", flush=True)
"""

REASONS = {
    "data": "other settings than process . in 'phase train'",
    "values": "other settings than process . in 'phase train'",
    "chain": "runs something else than|is at '.*' and process . at '",
    "directory": "is at '.*' and process . at '",
    "unshared": "the directory of a run on several processes must be one|looking for a file",
    "stop": r"processes \[1\] decided to stop and the others did not",
    "observer": "OSError: the disk of one is gone.*in hook 'observe_alone'",
    "split": "observer 'observe_alone' reads params/.*gather=",
    "control": "OSError: the disk of one is gone.*in hook 'fail_alone'",
}


@pytest.mark.parametrize("fault", REASONS)
def test_both_end_with_the_reason(tmp_path, fault):
    began = time.monotonic()
    with Pair(CHILD.replace("FAULT", repr(fault)), tmp_path) as pair:
        ends = pair.ended()
    took = time.monotonic() - began
    errors = pair.read_errors()
    assert all(status != 0 for status, _ in ends), ends
    for text in errors:
        assert re.search(REASONS[fault], text.replace("\n", " ")), text[-3000:]
    assert took < 30, took
