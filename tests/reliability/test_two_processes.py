"""Two real processes on loopback train one model together: killed, signalled, resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import _crashing
import pytest
from pairs import Pair

EPOCHS = 8

CHILD = """
import ctypes, signal, sys, time
import jax, jax.numpy as jnp, numpy as np, optax

run, rank, count, port, pause = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
jax.config.update("jax_num_cpu_devices", 4 // count)
if count > 1:
    import trainer
    trainer.distributed(
        f"127.0.0.1:{port}", count, rank, heartbeat_timeout_seconds=5, shutdown_timeout_seconds=5
    )
import hooks, models, trainer
from trainer import data, losses
from trainer.data.iteration import index_loader

whole, val = data.digits(batch_size=32)
arrays = {name: np.asarray(array) for name, array in whole.arrays.items()}
train = data.MemoryMap(arrays, 32, superbatch=11)

rows, permute = [], index_loader.permute_indices
def count_rows(order, *arguments):
    rows.append(order.size)
    return permute(order, *arguments)
index_loader.permute_indices = count_rows

network = models.mlp(classes=10, hidden=(16,))
task = trainer.supervised(network, losses.classification, optax.adam(1e-2))

def on_sigterm():
    action = ctypes.create_string_buffer(1024)
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action)
    return action.raw[:8]

def tell(state, metrics):
    print("epoch", int(state.epoch), flush=True)
    time.sleep(pause if state.epoch >= 3 else 0)
    return state

@hooks.observe
@hooks.writes("lead")
def score(state, metrics):
    return state.replace(scores={**state.scores, "lead": 1.0})

def part_ways(state, metrics):
    raise AssertionError("only observers see what observers score")

parting = trainer.Hook(part_ways, "part_ways", stage="save")
def begin():
    state = task.init(jax.random.key(0), whole.example)
    return state.replace(carry={**state.carry, "frozen": jnp.arange(2**16)})  # 64 KiB a device

rules = [("^params/|^carry/frozen", trainer.fsdp())]
start = trainer.spread(begin, rules=rules)

def find_kernel(tree):
    (kernel,) = (leaf for leaf in jax.tree.leaves(tree) if leaf.shape == (64, 16))
    return kernel

refused = []
def reduce_alone(state, metrics):
    try:
        jnp.sum(find_kernel(state.params))
    except RuntimeError as error:
        refused.append(str(error))
    return state

sizes = []
def reduce_gathered(state, metrics):
    sizes.append((int(state.epoch), float(np.abs(find_kernel(state.params)).sum())))
    return state
seen = hooks.observe(hooks.stateful("seen", lambda state: 0, lambda n, s, m: (n + 1, s)))
chain = hooks.chain(
    hooks.evaluate(trainer.evaluation(task.measure, val)),
    hooks.stop_early("val/loss", patience=50),
    hooks.roll_back_on_nan(),
    hooks.average_params(),
    hooks.every_steps(100, seen),
    score,
    hooks.observe(reduce_alone),
    hooks.every(2, hooks.observe(reduce_gathered, gather="params")),
    hooks.when(lambda state, metrics: "lead" in metrics, parting),
    hooks.log_metrics(hooks.JsonLines(run + "/metrics.jsonl")),
    hooks.save_checkpoints(run, max_cost=None),
    tell,
)
before = on_sigterm()
state, _ = trainer.fit(start, trainer.training(task.step, train), epochs=EPOCHS, hooks=chain)
kept = find_kernel(state.hook_state["average_params"]["params"])
assert not kept.sharding.is_fully_replicated, "the average is split as the parameters are"
state = trainer.gather(state)
if count > 1 and rank == 0:
    assert len(refused) == len(set(refused)) == 1 or len(refused) > 1, refused
    assert "gather" in refused[0] and "params/" in refused[0], refused
    assert sizes[-1] == (EPOCHS, float(np.abs(find_kernel(state.params)).sum())), sizes
else:
    assert not refused
correct = np.mean(np.argmax(network.apply(
    state.params, {}, np.asarray(val.arrays["inputs"]), key=None, train=False
)[0], axis=-1) == np.asarray(val.arrays["labels"]))
batches = EPOCHS * (len(whole.arrays["labels"]) // 32) + 11  # 11 of them ahead
assert sum(rows) <= batches * 32 // count, "each process reads its own rows alone"
assert on_sigterm() == before and (count == 1 or before != bytes(8))  # JAX's notice is back
print("final", trainer.fingerprint(state), sorted(state.hook_state), correct, flush=True)
""".replace("EPOCHS", str(EPOCHS))


def finished(run, *, child=CHILD, **settings):
    """Run to the end; return the last line of each process."""
    with Pair(child, run, **settings) as pair:
        ends = pair.ended()
    errors = [path.read_text() for path in sorted(Path(run).glob("stderr.*"))]
    assert [status for status, _ in ends] == [0] * len(ends), errors
    assert not any("with other settings" in text for text in errors)  # new processes give the same
    return [line for _, line in ends]


def records(run):
    """Return the lines of the log, without times."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of two processes: its directory, and the last line of each."""
    run = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield run, finished(run)


def test_both_end_with_the_same_and_observers_ran_on_the_main_process(whole):
    run, (lead, other) = whole
    assert "'seen'" in lead
    assert "'seen'" not in other
    assert [record["epoch"] for record in records(run)] == list(range(1, EPOCHS + 1))
    assert float(lead.split()[-1]) == float(other.split()[-1]) > 0.8


def test_each_refers_to_its_pieces_of_an_array_that_never_changes(whole):
    for epoch in (EPOCHS - 1, EPOCHS):
        arrays = whole[0] / "checkpoints" / str(epoch) / "arrays"
        shared = {file.name.partition(".")[0]: file.stat() for file in arrays.glob("process_?.*")}
        assert shared.keys() == {"process_0", "process_1"}
        assert all(status.st_size > 2**17 for status in shared.values())
        assert {status.st_nlink for status in shared.values()} == {3}  # of the three that are kept


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_killing_either_ends_both_and_the_run_resumes_bit_for_bit(whole, tmp_path, killed):
    with Pair(CHILD, tmp_path, pause=1.0) as pair:
        pair.reach(3)
        pair.processes[killed].kill()
        ends = pair.ended()
    assert ends[killed][0] == -signal.SIGKILL
    assert ends[1 - killed][0] not in (0, None)
    assert _crashing.newest(tmp_path) in (2, 3, 4)
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])


def stopped_by(number, run):
    """Send a signal to one of two processes after three epochs; return how they ended."""
    with Pair(CHILD, run, pause=1.0) as pair:
        pair.reach(3)
        pair.processes[1].send_signal(number)
        return pair.ended()


@pytest.mark.soak  # tests of one process hold the law of signals, the one above that of two
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_a_signal_to_one_ends_both_after_one_save(whole, tmp_path, number, status):
    ends = stopped_by(number, tmp_path)
    assert [end for end, _ in ends] == [status, status]
    last = {line for _, line in ends}
    assert last in ({"nothing"}, {"epoch 4"})
    assert ("3" if last == {"nothing"} else "4") in os.listdir(tmp_path / "checkpoints")
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])


@pytest.mark.soak
def test_two_processes_train_as_one_with_as_many_devices(whole, tmp_path):
    finished(tmp_path, count=1)
    both, one = records(whole[0])[0], records(tmp_path)[0]  # 44 updates: then rounding grows
    assert both.keys() == one.keys()
    assert [both[key] for key in one] == pytest.approx([*one.values()], rel=1e-4)


@pytest.mark.soak
def test_one_process_resumes_the_run_of_two(whole, tmp_path):
    stopped_by(signal.SIGTERM, tmp_path)
    (end,) = finished(tmp_path, count=1)
    assert float(end.split()[-1]) == pytest.approx(float(whole[1][0].split()[-1]), abs=0.03)
    both, one = records(whole[0]), records(tmp_path)
    assert [record["step"] for record in one] == [record["step"] for record in both]
    assert [r["train/loss"] for r in one] == pytest.approx(
        [r["train/loss"] for r in both], rel=0.02
    )
