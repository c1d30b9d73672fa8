"""Law 5 on long data: epochs that are parts of a pass; no example is skipped or repeated."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import data

EXAMPLES, STEPS, EPOCHS = 15, 5, 4
"""Seven whole batches of two, and one more example: every pass ends within an epoch."""


def batch_of(numbers):
    return {"inputs": np.asarray(numbers, np.float32)[:, None]}


def shuffled(seed, number):
    return np.random.default_rng((seed, number)).permutation(EXAMPLES)


def generated(seed, number):
    order = shuffled(seed, number)
    for place in range(0, EXAMPLES, 2):
        yield batch_of(order[place : place + 2])


def listed(seed, number):
    return list(generated(seed, number))


def one_batch(seed, number):
    return listed(seed, number)[:1]


def one_epoch(seed, number):
    return listed(seed, number)[:STEPS]


READING = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
"""By default 16 threads read 500 batches ahead, which would dominate here."""


def mapped(seed, number):
    numbers = grain.MapDataset.range(EXAMPLES).shuffle(seed=(seed + number) % 2**32)
    return numbers.batch(2).map(batch_of).to_iter_dataset(READING)


def mapped_of_one_epoch(seed, number):
    numbers = grain.MapDataset.range(2 * STEPS).shuffle(seed=(seed + number) % 2**32)
    return numbers.batch(2).map(batch_of).to_iter_dataset(READING)


def endless():
    numbers = grain.MapDataset.range(EXAMPLES - 1).shuffle(seed=1).repeat()
    return numbers.batch(2).map(batch_of).to_iter_dataset(READING)


def filtered(seed, number):
    numbers = grain.MapDataset.range(2 * EXAMPLES).shuffle(seed=(seed + number) % 2**32)
    return numbers.to_iter_dataset(READING).filter(lambda n: n % 2 == 0).batch(2).map(batch_of)


def mixed(seed, number):
    parts = [filtered(seed, number), filtered(seed, number + 10)]
    return grain.IterDataset.mix(parts, weights=[0.5, 0.5]).filter(lambda b: len(b["inputs"]) == 2)


def loaded(seed, number):
    return grain.DataLoader(
        data_source=range(EXAMPLES),
        sampler=grain.samplers.IndexSampler(
            EXAMPLES,
            shuffle=True,
            seed=(seed + number) % 2**32,
            num_epochs=1,
            shard_options=grain.sharding.NoSharding(),
        ),
        operations=[grain.transforms.Batch(2), Batched()],
        read_options=READING,
    )


class Batched(grain.transforms.Map):
    def map(self, element):
        return batch_of(element)


ARRAYS = {"inputs": np.arange(EXAMPLES, dtype=np.float32)[:, None]}

SOURCES = {
    "a factory of a generator": generated,
    "a factory of a list": listed,
    "a list": listed(0, 0),
    "a pass of one step": one_batch,
    "a pass of one epoch": one_epoch,
    "a shuffled map dataset": mapped,
    "a map dataset of one epoch": mapped_of_one_epoch,
    "an endless dataset": endless(),
    "an iterable dataset": filtered,
    "a mixture": mixed,
    "a data loader": loaded,
    "a memory map": data.MemoryMap(ARRAYS, 2, superbatch=2, steps_per_epoch=STEPS),
}
"""Of batches; or a source that reads by itself."""


def step(state, batch):
    first, second = batch["inputs"][:, 0]
    params = {"w": state.params["w"] * 0.9 + first - 0.5 * second}
    after = state.replace(step=state.step + 1, params=params)
    return after, {"first": first, "second": second}


def start(seed=0):
    params = {"w": jnp.zeros(())}
    return trainer.TrainState.create(params=params, rng=jax.random.key(seed))


def phase_over(batches, superbatch=2):
    if isinstance(batches, data.MemoryMap):
        return trainer.training(step, batches)
    return trainer.training(step, data.Stream(batches, superbatch, steps_per_epoch=STEPS))


def run(phase, directory=None, epochs=EPOCHS, seed=0):
    """Train; return the examples that training saw, in order, and the final fingerprint."""
    seen = []

    def note(state, metrics):
        rows = metrics.steps["train/first"], metrics.steps["train/second"]
        seen.extend(np.stack(rows, axis=1).astype(int).tolist())
        return state

    chain = [hooks.observe(note)]
    if directory is not None:
        chain.append(hooks.save_checkpoints(directory, keep=EPOCHS, max_cost=None))
    state, _ = trainer.fit(start(seed), phase, epochs=epochs, hooks=chain)
    return SimpleNamespace(seen=seen, fingerprint=trainer.fingerprint(state), state=state)


@pytest.mark.parametrize("name", SOURCES)
def test_law_5_a_resumed_run_sees_each_example_at_its_place(name, tmp_path):
    straight = run(phase_over(SOURCES[name]), tmp_path / "straight")
    assert len(straight.seen) == STEPS * EPOCHS
    for stop in range(1, EPOCHS):
        checkpoint = Path("checkpoints", str(stop))
        shutil.copytree(tmp_path / "straight" / checkpoint, tmp_path / str(stop) / checkpoint)
        resumed = run(phase_over(SOURCES[name]), tmp_path / str(stop))
        assert resumed.seen == straight.seen[STEPS * stop :]
        assert resumed.fingerprint == straight.fingerprint


@pytest.mark.parametrize("batches", [generated, listed, mapped, loaded, SOURCES["a memory map"]])
def test_passes_are_whole_and_differ(batches):
    seen = run(phase_over(batches)).seen
    first, second = sorted(map(str, seen[:7])), sorted(map(str, seen[7:14]))
    assert len({number for pair in seen[:7] for number in pair}) == 14
    assert len({number for pair in seen[7:14] for number in pair}) == 14
    assert first != second


@pytest.mark.parametrize("superbatch", [1, 3, 16])
def test_the_size_of_a_superbatch_changes_nothing(superbatch):
    assert run(phase_over(generated, superbatch)).seen == run(phase_over(generated)).seen


@pytest.mark.parametrize("batches", [generated, mapped, SOURCES["a memory map"]])
def test_another_seed_is_another_order(batches):
    phase = phase_over(batches)
    other = run(phase, seed=1)
    assert other.seen != run(phase, seed=0).seen
    assert other.seen == run(phase_over(batches), seed=1).seen


class Recorded:
    """A sequence that records which of its batches were read."""

    def __init__(self, batches, read):
        self.batches, self.read = batches, read

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, place):
        batch = self.batches[place]
        self.read.append(place)
        return batch


def test_nothing_before_the_position_is_read_from_a_sequence(tmp_path):
    read = []

    def recorded(seed, number):
        return Recorded(listed(seed, number), read if seed else [])  # seed 0 belongs to the example

    run(phase_over(recorded), tmp_path, epochs=1)
    assert read == [0, 1, 2, 3, 4]
    read.clear()
    run(phase_over(recorded), tmp_path, epochs=2)
    assert read == [5, 6, 7, 0, 1, 2]  # 7 is the smaller last one


@pytest.mark.parametrize("batches", [generated, mapped, filtered])
def test_an_error_in_the_middle_of_an_epoch_loses_nothing(batches, tmp_path):
    straight = run(phase_over(batches))
    fail = []

    def failing(seed, number):
        given = batches(seed, number)
        return broken(given) if fail and fail.pop() else given

    def broken(given):
        yield next(iter(given))
        raise OSError("the disk is gone")

    phase = phase_over(failing)
    before = run(phase, tmp_path, epochs=1)
    fail.append(True)  # pass 1 begins two steps into epoch 1 and breaks one step later
    with pytest.raises(OSError, match="the disk is gone"):
        run(phase, tmp_path)
    after = run(phase, tmp_path)
    assert before.seen + after.seen == straight.seen
    assert after.fingerprint == straight.fingerprint


@pytest.mark.parametrize("batches", [generated, mapped, SOURCES["a memory map"]])
def test_rolled_back_it_reads_the_same_again(batches):
    phase = phase_over(batches)
    state = phase.add_position(start())
    once, _, _ = phase.execute(state, None, donate=False)
    twice, _, _ = phase.execute(once, None, donate=False)
    again, _, _ = phase.execute(once, None, donate=False)
    assert trainer.fingerprint(twice) == trainer.fingerprint(again)
    assert trainer.fingerprint(twice) != trainer.fingerprint(once)


CHILD = """
import sys
sys.path.insert(0, {folder!r})
import test_long_data as tests

given = 0

def reported(seed, number):
    global given
    for batch in tests.{factory}(seed, number):
        if seed:
            given += 1
            print(given, flush=True)
            if given == 18:
                sys.stdin.read()  # in epoch 3, until it is killed
        yield batch

tests.run(tests.phase_over(reported), sys.argv[1], epochs=10)
"""


def test_law_5_killed_in_the_middle_of_an_epoch(tmp_path):
    straight = run(phase_over(generated), epochs=10)
    script = CHILD.format(folder=str(Path(__file__).parent), factory="generated")
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        text=True,
    )
    limit = threading.Timer(120, child.kill)
    limit.start()
    try:
        for line in child.stdout:
            if int(line) == 18:
                os.kill(child.pid, signal.SIGKILL)
                break
        assert child.wait(60) == -signal.SIGKILL
    finally:
        limit.cancel()
        child.kill()
        child.wait(60)
        child.stdin.close()
        child.stdout.close()
    after = run(phase_over(generated), tmp_path, epochs=10)
    saved = 10 - len(after.seen) // STEPS
    assert 1 <= saved <= 3
    assert straight.seen[saved * STEPS :] == after.seen
    assert after.fingerprint == straight.fingerprint
