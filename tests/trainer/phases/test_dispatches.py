"""A long scan runs in a few dispatches, with equal bits, compiled once."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import optax
import pytest

import trainer
from models import from_linen
from trainer import data, fingerprint, losses
from trainer.phases import dispatches
from trainer.phases.dispatches import choose_dispatch_count


class Convolving(nn.Module):
    """The smallest convolutional network."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


TASKS = {
    "dots": lambda task: task,
    "convolution": lambda _: trainer.supervised(
        from_linen(Convolving()), losses.classification, optax.sgd(0.1)
    ),
}


@pytest.fixture
def short(monkeypatch):
    """Split every scan, at any length."""

    def cut(yes=True):
        least = dispatches.Shortest(operations=0 if yes else 10**11, steps=2)
        monkeypatch.setattr(dispatches, "SHORTEST", {"cpu": least})

    return cut


def phases(task, digits, executor):
    """Phases of a new step and a new measure, which share nothing."""
    train, val = digits
    return (
        trainer.training(lambda state, b: task.step(state, b), train, executor=executor),
        trainer.evaluation(lambda state, b: task.measure(state, b), data.Arrays(val.arrays, 13)),
    )


@pytest.mark.parametrize("network", TASKS)
def test_split_and_whole_scans_give_the_same_bits(task, digits, short, network):
    task = TASKS[network](task)
    start = task.init(jax.random.key(0), digits[0].example)
    found = []
    for yes in (True, False):
        short(yes)
        state, read = start, []
        for phase in phases(task, digits, "scan")[: 2 if network == "dots" else 1]:
            state, _, measured = phase.execute(state, None, donate=False)
            ((_, packed),) = measured.packed
            count = {"train": 3, "val": 2}[phase.name]  # of 6 and of 4 steps
            assert len(packed) == count if yes else not isinstance(packed, list)
            read.append(measured.read())
        found.append((fingerprint(state), read))
    (cut, values), (whole, others) = found
    assert cut == whole
    chex.assert_trees_all_equal(values, others)


def test_law_8_a_split_scan_compiles_once_and_donates_its_state(
    task, digits, short, counting_compilations
):
    short()
    train, val = phases(task, digits, "auto")
    state = task.init(jax.random.key(0), digits[0].example)
    trainer.fit(state, [train, val], epochs=1)
    with counting_compilations() as counts:
        after, _ = trainer.fit(state, [train, val], epochs=2, hooks=lambda state, metrics: state)
    assert counts == []
    (program,) = train._shared.compiled.values()
    assert program.get().choice.reason.endswith("in 3 dispatches of 2 steps")
    train.execute(after, None, donate=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(after.params))
    assert not state.step.is_deleted()


def test_a_split_scan_reports_its_steps_dispatch_by_dispatch(task, digits, short):
    class Told(list):
        def add(self, steps, mark):
            self.append((steps, mark.shape[0]))

    short()
    train, _ = phases(task, digits, "scan")
    state = trainer.state.strip_host_fields(task.init(jax.random.key(0), digits[0].example))
    told = Told()
    train.get_compiled(state, train.feed.example, donate=False).run(state, train.feed.example, told)
    assert told == [(2, 2)] * 3


@pytest.mark.parametrize(
    ("steps", "operations", "devices", "count"),
    [
        (480, 16 * 10**11, 1, 16),
        (480, 16 * 10**11 - 1, 1, 15),
        (480, 10**11, 1, 1),
        (480, 10**13, 2, 1),
        (255, 10**13, 1, 15),  # of 17 steps
        (64, 10**13, 1, 4),
        (31, 10**13, 1, 1),
        (479, 10**13, 1, 1),  # prime
        (1, 10**13, 1, 1),
    ],
)
def test_the_count_depends_on_operations_and_steps(steps, operations, devices, count):
    assert choose_dispatch_count(steps, operations, jax.devices("cpu")[:1] * devices) == count
