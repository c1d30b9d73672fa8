"""The bundled hooks on states that are split over two processes."""

from __future__ import annotations

import pytest
from pairs import Pair

pytestmark = pytest.mark.soak

BEGIN = """
import pathlib, sys
import jax, numpy as np, optax

run, rank, count, port = sys.argv[1], *map(int, sys.argv[2:5])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import hooks, models, trainer
from trainer import data, losses

rng = np.random.default_rng(0)
inputs = rng.random((320, 64), np.float32)
train = data.Arrays({"inputs": inputs, "labels": np.arange(320) % 10}, 32)
network = models.mlp(classes=10, hidden=(16,))
optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
task = trainer.supervised(network, losses.classification, optimizer)
"""

CHAIN = """
averages, seen, found = [], [], []

def kernel(tree):
    (leaf,) = (leaf for leaf in jax.tree.leaves(tree) if leaf.shape == (64, 16))
    return leaf

@hooks.observe
def keep_nothing(state, metrics):
    assert kernel(state.params).dtype == np.float32  # what it is may be read
    return state.replace(params=state.params)  # the real leaves come back

def collect(state, metrics):
    seen.append(float(np.abs(kernel(state.params)).sum()))
    return state

def gathered(state, metrics):
    averages.append(float(np.abs(kernel(trainer.gather(state.hook_state["swa"]["params"]))).sum()))
    return state

rules = [("^params/", trainer.fsdp())]
start = trainer.spread(lambda: task.init(jax.random.key(0), train.example), rules=rules)
phase = trainer.evaluation(task.measure, train)
chain = hooks.chain(
    hooks.evaluate(phase, sanity=True),
    hooks.roll_back_on_spike("train/loss"),
    hooks.swa(start=1),
    hooks.evaluate(trainer.evaluation(task.measure, train, name="swa"), params="swa"),
    hooks.keep_best("swa/loss", params="swa"),
    hooks.reduce_on_plateau("val/loss", patience=1),
    hooks.stop_on_nan(),
    hooks.time_limit(1000.0),
    gathered,
    keep_nothing,
    hooks.watch_gradients(task, train, hooks.TensorBoard(run + "/board"), histograms_every=2),
    hooks.background(hooks.observe(collect, gather="params")),
    hooks.guard(hooks.every(2, hooks.observe(lambda state, metrics: state))),
    hooks.watch_system(),
    hooks.log_metrics(hooks.JsonLines(run + "/metrics.jsonl")),
    hooks.heartbeat(run + "/alive"),
    hooks.save_checkpoints(run),
)
program = trainer.training(task.step, train)
state, history = trainer.fit(start, program, epochs=3, hooks=chain, dry_run=True)
assert len(averages) == 4 and len(seen) == (4 if rank == 0 else 0)
assert not kernel(state.params).sharding.is_fully_replicated
outputs = trainer.predict(state, network, train)
accuracy = np.mean(outputs.argmax(axis=1) == train.arrays["labels"])
assert abs(accuracy - trainer.evaluate(state, phase)["val/accuracy"]) < 1e-6
trainer.export_params(state.params, run + "/params.npz")
loaded = trainer.load_params(run + "/params.npz", state.params)
assert (kernel(loaded) == kernel(state.params)).all()
if rank == 0:
    lines = pathlib.Path(run, "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4 and "gradients/norm/" in lines[-1], lines
print("final", trainer.fingerprint(trainer.gather(state).replace(hook_state={})), flush=True)
"""

MEMBERS = """
chosen = []
def shrink(state, metrics):
    chosen.append(float(np.abs(jax.tree.leaves(state.params)[0]).sum()))
    stop = bool(metrics["train/loss"] > 2.6)
    return state.replace(params=jax.tree.map(lambda leaf: leaf * 0.5, state.params), stop=stop)

@hooks.observe
def look(state, metrics):
    np.asarray(jax.tree.leaves(state.params)[0])
    return state

keys = jax.random.split(jax.random.key(0), 4)
start = trainer.spread(trainer.population_of(lambda key: task.init(key, train.example), keys))
program = trainer.population(trainer.training(task.step, train), 4)
each = hooks.each(hooks.chain(shrink, hooks.stop_early("train/loss", patience=9), look))
state, _ = trainer.fit(start, program, epochs=3, hooks=[each, hooks.save_checkpoints(run)])
assert state.params["head"]["kernel"].sharding == start.params["head"]["kernel"].sharding
whole = trainer.gather(state).replace(hook_state={})
saved = trainer.gather(trainer.restore(run, start)).replace(hook_state={})
assert trainer.fingerprint(saved) == trainer.fingerprint(whole), "keys of members, too"
print("final", trainer.fingerprint(whole), chosen[:4], flush=True)
"""

OVERLAP = """
def halve(state, metrics):
    return state.replace(params=jax.tree.map(lambda leaf: leaf * 0.5, state.params))

def look(state, metrics):
    assert metrics["val/loss"] > 0 and metrics["time/epoch_seconds"] > 0
    return state

rules = [("^params/", trainer.fsdp())]
start = trainer.spread(lambda: task.init(jax.random.key(0), train.example), rules=rules)
program = trainer.training(task.step, train)
phase = trainer.evaluation(task.measure, train)
ends = []
for overlap in (False, True):
    chain = hooks.evaluate(phase), look, hooks.every(3, halve), hooks.average_params(0.5)
    saving = hooks.save_checkpoints(f"{run}/{overlap}", max_cost=None)
    state, _ = trainer.fit(start, program, epochs=5, hooks=[*chain, saving], overlap=overlap)
    ends.append(trainer.fingerprint(trainer.gather(state)))
    ends.append(trainer.fingerprint(trainer.gather(trainer.restore(f"{run}/{overlap}", state))))
assert len(set(ends)) == 1, ends
print("final", ends[0], flush=True)
"""


FAILING = """
def fail(state, metrics):
    raise ValueError("both fail")

def look(state, metrics):
    print("seen", int(state.epoch), flush=True)
    for leaf in jax.tree.leaves(state.params):
        np.asarray(leaf)
    return state

rules = [("^params/", trainer.fsdp())]
start = trainer.spread(lambda: task.init(jax.random.key(0), train.example), rules=rules)
watching = hooks.on("error", hooks.observe(look))
trainer.fit(start, trainer.training(task.step, train), epochs=2, hooks=[fail, watching])
"""


@pytest.mark.parametrize("child", [CHAIN, MEMBERS, OVERLAP], ids=["chain", "members", "overlap"])
def test_hooks_work_and_the_processes_end_with_the_same_state(tmp_path, child):
    with Pair(BEGIN + child, tmp_path) as pair:
        ends = pair.ended()
    assert [status for status, _ in ends] == [0, 0], pair.read_errors()
    assert len({line for _, line in ends}) == 1


def test_error_hooks_run_on_the_main_process_and_their_failures_are_notes(tmp_path):
    with Pair(BEGIN + FAILING, tmp_path) as pair:
        ends = pair.ended()
    main, other = pair.read_errors()
    assert [line == "seen 1" for _, line in ends] == [True, False]
    for text in (main, other):
        assert "ValueError: both fail" in text
    assert "and an error hook failed: RuntimeError(" in main
    assert "reads params/" in main
    assert "error hook" not in other
