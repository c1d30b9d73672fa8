"""A training run whose server is killed repeatedly while it records each epoch."""

import signal
import statistics
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer.runs import Run, Store, delivery


def multiply(state, data):
    """A phase of a few milliseconds."""

    def once(_, product):
        return jnp.tanh(product @ product)

    product = jax.lax.fori_loop(0, 100, once, jnp.outer(*[jnp.arange(128.0)] * 2) / 1e4)
    params = jax.tree.map(lambda w: w * 0.999, state.params)
    state = state.replace(params=params, step=state.step + 1)
    return state, None, {"loss": jnp.abs(params["w"]).sum(), "product": product.sum()}


@pytest.fixture
def training(database, state, tmp_path):
    """Return a function that creates a run, and one that trains it for some epochs.

    The latter returns its seconds and the trained parameters.
    """
    phase, losses = trainer.Phase("train", multiply), {}

    def begin(name):
        return Run(tmp_path / "runs" / name, store=database)

    def train(run, epochs):
        chain = hooks.log_metrics(hooks.Database(run)) if run else ()
        began = time.perf_counter()
        end, history = trainer.fit(state, phase, epochs=epochs, hooks=chain)
        seconds = time.perf_counter() - began
        losses[run and run.name] = [(n, row["train/loss"]) for n, row in enumerate(history, 1)]
        return seconds, trainer.fingerprint(end)

    yield begin, train
    with Store(database) as store:
        for name in filter(None, losses):
            found = store.records(name, ["train/loss"])
            assert [(record.epoch, record.value) for record in found] == losses[name]


class Killer:
    """Kills and restarts a server repeatedly, until it is stopped."""

    def __init__(self, server, *, alive, away):
        self.kills = 0
        self._server, self._pauses = server, (alive, away)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self):
        alive, away = self._pauses
        while not self._enough.wait(alive):
            self._server.stop(signal.SIGKILL)
            self.kills += 1
            self._enough.wait(away)
            self._server.start()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._enough.set()
        self._thread.join()
        self._server.stop()  # it ends with the thread that started it
        self._server.start()


def test_no_record_is_lost_when_the_server_is_killed(training, server, soon, monkeypatch):
    monkeypatch.setattr("trainer.runs.recorder.CLOSE_SECONDS", 30.0)
    begin, train = training
    run = begin("killed")
    with Killer(server, alive=0.05, away=0.05) as killer:
        _, disturbed = train(run, 100)
    assert killer.kills >= 1  # how many fit into the run depends on the machine
    assert train(begin("not killed"), 100)[1] == disturbed


@pytest.mark.soak
def test_what_it_costs_when_the_server_is_killed_every_second(training, server, monkeypatch):
    monkeypatch.setattr("trainer.runs.recorder.CLOSE_SECONDS", 60.0)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.1, 1.0))
    epochs, rounds, kills = 1000, 5, 0
    times = {"no records": [], "recorded": [], "recorded, server killed every second": []}
    none, recorded, killed = times
    begin, train = training
    train(None, epochs)
    for number in range(rounds):
        times[none].append(train(None, epochs)[0])
        times[recorded].append(train(begin(f"recorded {number}"), epochs)[0])
        run = begin(f"killed {number}")
        with Killer(server, alive=0.7, away=0.3) as killer:
            times[killed].append(train(run, epochs)[0])
        kills += killer.kills
    medians = {what: statistics.median(seconds) for what, seconds in times.items()}
    print(f"\n{rounds} runs of {epochs} epochs, {kills} kills: records lost 0, doubled 0")
    for what, seconds in medians.items():
        added = seconds / medians[none] - 1
        print(f"{what}: {seconds:.2f} s, {seconds / epochs * 1e6:.0f} us an epoch ({added:+.1%})")
    assert kills > rounds
    assert medians[killed] < 1.5 * medians[recorded]
