"""What several processes exchange in an epoch; the other process is played by an echo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer.hook import Hook
from trainer.host import exchange, time_spans
from trainer.host.exchange import FailedElsewhereError

EPOCHS = 3


@pytest.fixture
def sent(monkeypatch):
    """Run as the second of two processes; the first says the same, but its times are longer.

    Returns the names of the exchanges.
    """
    names = []

    def gather(mine):
        names.append(exchange._decode(mine))
        main = mine.copy()
        if "epoch" in names[-1]:
            numbers = main[4:128].view(np.float64)
            count = mine[2] // 2
            numbers[count - 2 - HOOKS : count] += 100
        return np.array([main, mine])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(exchange, "_gather", gather)
    return names


HOOKS = 1
"""Hooks of a run: each has a time of its own."""


def train(hook):
    def halve(state, batch):
        return state.replace(params=state.params / 2), None, {"size": state.params}

    start = trainer.TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    return trainer.fit(start, trainer.Phase("halve", halve), epochs=EPOCHS, hooks=hook)


def count_in_epochs(names):
    return sum("epoch" in name and "epochs of" not in name for name in names)


def test_an_epoch_takes_one_exchange_and_its_times_are_those_of_the_main_process(sent):
    seen = []

    def look(state, metrics):
        seen.append(metrics["halve/size"])
        assert "time/epoch_seconds" in metrics
        return state

    _, history = train(look)
    assert seen == [1.0, 0.5, 0.25]
    assert count_in_epochs(sent) == EPOCHS
    assert all(100 < epoch["time/epoch_seconds"] < 200 for epoch in history)
    assert all(100 <= epoch["time/hook/look"] < 200 for epoch in history)


def test_a_control_hook_that_reads_times_sees_those_of_the_main_process(sent):
    seen = []

    def look(state, metrics):
        seen.append(metrics["time/epoch_seconds"])
        assert metrics["time/hook/look"] >= 100
        return state

    _, history = train(look)
    assert seen == [epoch["time/epoch_seconds"] for epoch in history]
    assert count_in_epochs(sent) == 2 * EPOCHS


def test_a_hook_that_checks_all_values_needs_no_exchange_of_its_own(sent):
    train(hooks.stop_on_nan())
    assert count_in_epochs(sent) == EPOCHS


def test_work_in_the_background_that_failed_ends_the_run_at_the_exchange_of_its_epoch(sent):
    def check():
        raise OSError("no room")

    ran = []

    def look(state, metrics):
        ran.append(int(state.epoch))
        return state

    with pytest.raises(OSError, match="no room") as caught:
        train(Hook(look, "look", check_background=check))
    assert ran == [1]
    assert count_in_epochs(sent) == 1
    assert "found at 'epoch' of epoch 1" in caught.value.__notes__[0]


def test_a_read_on_one_process_alone_is_told_apart_from_the_exchange_of_the_epoch(
    sent, monkeypatch
):
    echo = exchange._gather

    def gather(mine):
        if "reads" not in exchange._decode(mine):
            return echo(mine)
        return np.array([exchange.pack_message("'epoch' of epoch 1"), mine])

    monkeypatch.setattr(exchange, "_gather", gather)

    def look(state, metrics):
        assert metrics["time/epoch_seconds"]
        return state

    with pytest.raises(FailedElsewhereError, match="which a control hook reads .on all processes"):
        train(look)


def test_a_change_on_another_process_discards_an_epoch_here_too(sent, monkeypatch):
    gather, dispatched, run = exchange._gather, [], time_spans.span

    def change_elsewhere(mine):
        messages = gather(mine)
        if "epoch" in sent[-1]:
            messages[0][4:6].view(np.float64)[0] = 1
        return messages

    def note(kind, name="", number=None):
        dispatched.extend([name] * (kind == "dispatch"))
        return run(kind, name, number)

    monkeypatch.setattr(exchange, "_gather", change_elsewhere)
    monkeypatch.setattr("trainer.phases.phase.span", note)
    start = trainer.TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    phase = trainer.Phase("halve", lambda s, d: (s.replace(params=s.params / 2), None, {}))
    after, _ = trainer.fit(start, phase, epochs=EPOCHS, hooks=lambda s, m: s, overlap=True)
    assert (len(dispatched), float(after.params)) == (EPOCHS + 1, 0.5**EPOCHS)
