"""Measures of a split, the report of them, and an export, of a state split over two processes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from pairs import Pair
from sklearn.metrics import confusion_matrix, roc_auc_score

CHILD = """
import json, sys
import flax, jax, numpy as np, optax

run, rank, count, port = sys.argv[1], *map(int, sys.argv[2:5])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import hooks, models, trainer
from hooks.reports import writing_report
from jax.sharding import PartitionSpec
from trainer import data, losses, measures

@flax.struct.dataclass
class Largest:
    value: jax.Array
    def merge(self, other):
        return Largest(max(self.value, other.value))
    def compute(self):
        return self.value

def tokens(state, batch):
    found = (batch["inputs"] * 3).astype(int)
    return found[:, :6], found

written, write_page = [], writing_report.write_page
def write_once(*arguments):
    written.append(arguments)
    write_page(*arguments)
writing_report.write_page = write_once

rng = np.random.default_rng(0)
inputs = rng.random((26, 8), np.float32)
arrays = {"inputs": inputs, "labels": (inputs[:, :3] + rng.random((26, 3))).argmax(1)}
split = data.MemoryMap(arrays, 8, superbatch=2)
network = models.mlp(classes=3, hidden=())
task = trainer.supervised(network, losses.classification, optax.adam(0.1))
measured = [
    task.measure,
    measures.auc(task.outputs),
    measures.confusion_matrix(task.outputs, classes=3),
    measures.bleu(tokens),
    measures.merged(lambda state, batch: {"largest": Largest(task.outputs(state, batch).max())}),
]
rules = [("kernel", PartitionSpec("data"))]
start = trainer.spread(lambda: task.init(jax.random.key(0), split.example), rules=rules)
program = trainer.training(task.step, split)
try:
    trainer.fit(
        start, program, epochs=1, hooks=hooks.show_mistakes(task.outputs, split, hooks.Console())
    )
except Exception as error:
    refused = str(error)
records = run + "/metrics.jsonl"
chain = hooks.chain(
    hooks.evaluate(trainer.evaluation(measured, split)),
    hooks.log_metrics(hooks.JsonLines(records)),
    hooks.write_report(run + "/report.html", records=records),
)
state, history = trainer.fit(start, program, epochs=2, hooks=chain)
assert len(written) == (rank == 0)
assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
trainer.export(network, state.params, split.example, run + "/net.jaxexport")
head = jax.tree.map(lambda leaf: leaf.tolist(), trainer.gather(state.params)["head"])
scores = {name: value for name, value in history[-1].items() if name.startswith("val/")}
arrays = {name: array.tolist() for name, array in arrays.items()}
print(json.dumps({"scores": scores, "head": head, "refused": refused, **arrays}), flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The directory of a run, and what each of its processes said last."""
    run = tmp_path_factory.mktemp("run")
    with Pair(CHILD, run) as pair:
        ends = pair.ended()
        assert [status for status, _ in ends] == [0, 0], pair.read_errors()
    return run, [json.loads(line) for _, line in ends]


def test_measures_are_those_of_the_whole_split_on_both_processes(ended):
    _, (main, other) = ended
    assert main["scores"] == other["scores"]
    logits = np.array(main["inputs"]) @ main["head"]["kernel"] + main["head"]["bias"]
    odds, labels = np.exp(logits), main["labels"]
    counts = confusion_matrix(labels, logits.argmax(1), labels=range(3)).tolist()
    chances = odds / odds.sum(1, keepdims=True)
    wanted = {
        "accuracy": np.mean(logits.argmax(1) == labels),
        "auc": roc_auc_score(labels, chances, multi_class="ovr"),
        "bleu": np.exp(1 - 8 / 6),
        "largest": logits.max(),
        "loss": -np.log(chances[range(26), labels]).mean(),
        **{f"confusion/{a}/{b}": counts[a][b] for a in range(3) for b in range(3)},
    }
    assert main["scores"] == pytest.approx({f"val/{k}": v for k, v in wanted.items()}, rel=1e-4)


def test_the_report_is_written_once_and_shows_each_example_once(ended):
    run, (main, _) = ended
    page = (run / "report.html").read_text()
    _, _, table = page.partition('<table class="confusion">')
    assert table.partition("</table>")[0].count("<tr>") == 4
    counts = [value for name, value in main["scores"].items() if "confusion" in name]
    assert sum(counts) == 26


def test_mistakes_are_refused_on_both_processes(ended):
    _, said = ended
    for one in said:
        assert "reads the split on one process, and this run has 2" in one["refused"]


def test_a_state_that_is_split_exports_whole(ended):
    run, (main, _) = ended
    loaded = jax.export.deserialize((run / "net.jaxexport").read_bytes())
    inputs = np.array(main["inputs"], np.float32)
    logits = inputs @ main["head"]["kernel"] + main["head"]["bias"]
    np.testing.assert_allclose(loaded.call(inputs), logits, rtol=1e-4, atol=1e-5)
