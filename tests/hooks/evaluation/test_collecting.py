"""Results of evaluators in a run: taken once, the newest first, and waited for on demand."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from hooks import collect_scores, request_evaluation
from hooks.evaluation import collecting
from hooks.testing import check_hook
from trainer import Checkpoints
from trainer.runs import Run, Store, Unreachable, store_client
from trainer.runs.requests import (
    claim_request,
    create_request,
    fail_request,
    finish_request,
    list_answers,
)
from trainer.runs.run_directory import describe_checkpoint

LIMIT = 10
"""Seconds that a test waits at most."""


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Wait for answers on a busy machine, too."""
    monkeypatch.setattr(store_client, "POLL_SECONDS", float(LIMIT))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "digits")


def saving(run):
    return hooks.save_checkpoints(run.directory, max_cost=None, keep=9)


class Evaluator:
    """Stands in for evaluators: answers requests when a test says so."""

    def __init__(self, run):
        self.store, self.claimed = Store(run.url), {}

    def answer(self, epoch, **scores):
        """Wait for the request of an epoch, and answer it; without scores, it fails."""
        limit = time.monotonic() + LIMIT
        while epoch not in self.claimed:
            assert time.monotonic() < limit, f"epoch {epoch} was not requested"
            if request := claim_request(self.store, "tester", ["full"], lease=3600):
                self.claimed[request.epoch] = request
            else:
                time.sleep(0.002)
        request = self.claimed.pop(epoch)
        if scores:
            found = {f"full/{name}": value for name, value in scores.items()}
            assert finish_request(self.store, request, found)
        else:
            assert fail_request(self.store, request, "no such\x1b file", final=True)

    def arriving(self, when):
        """Return a hook, to list first: at an epoch, the results of other epochs arrive."""

        def arrive(state, metrics):
            for epoch in when.get(int(state.epoch), ()):
                self.answer(epoch, loss=1 / epoch, accuracy=float(epoch))
            return state

        return arrive


@pytest.fixture
def evaluator(run):
    evaluator = Evaluator(run)
    yield evaluator
    evaluator.store.close()


@contextlib.contextmanager
def working(run, measure, delay=0.0):
    """Run an evaluator in a thread: `measure(epoch)` returns scores, or raises."""
    done = threading.Event()

    def work():
        with Store(run.url) as store:
            while not done.is_set():
                request = claim_request(store, "tester", ["full"], lease=3600)
                if request is None:
                    done.wait(0.002)
                    continue
                done.wait(delay)
                try:
                    finish_request(store, request, measure(request.epoch))
                except ValueError as error:
                    fail_request(store, request, str(error), final=True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(LIMIT)
        assert not thread.is_alive()


def measure_epoch(epoch):
    return {"full/loss": abs(epoch - 3.0), "full/accuracy": 0.5}


def collected(history):
    return [(epoch.get("full/epoch"), epoch.get("full/accuracy")) for epoch in history]


def requesting(run):
    return [request_evaluation(run, "full"), saving(run)]


def test_a_result_is_added_once_with_its_epoch(state, phase, run, evaluator):
    arriving = evaluator.arriving({3: [1], 6: [2, 4]})
    chain = [arriving, collect_scores(run, "full"), *requesting(run)]
    after, history = trainer.fit(state, phase, epochs=7, hooks=chain)
    nothing = (None, None)
    assert collected(history) == [nothing, nothing, (1, 1), nothing, nothing, (4, 4), nothing]
    assert after.hook_state["collect_scores/full"] == {"taken": 4}


def test_an_overtaken_result_is_not_taken_later(state, phase, run, evaluator):
    arriving = evaluator.arriving({4: [2], 5: [1], 6: [3]})
    chain = [arriving, collect_scores(run, "full"), *requesting(run)]
    _, history = trainer.fit(state, phase, epochs=6, hooks=chain)
    assert [epoch for epoch, _ in collected(history)] == [None, None, None, 2, None, 3]


def test_later_hooks_may_read_the_scores(state, phase, run, evaluator):
    """The loss of epoch 3 is no better than that of epoch 1, which is known at epoch 5."""

    def arrive(state, metrics):
        if int(state.epoch) in (3, 5):
            evaluator.answer(int(state.epoch) - 2, loss=9.0)
        return state

    collect = collect_scores(run, "full", scores=("full/loss",))
    stop = hooks.stop_early("full/loss", patience=1)
    chain = [arrive, collect, stop, *requesting(run)]
    assert int(trainer.fit(state, phase, epochs=9, hooks=chain)[0].epoch) == 5
    with pytest.raises(ValueError, match="reads 'full/loss', which nothing writes"):
        trainer.fit(state, phase, epochs=9, hooks=[collect_scores(run, "full"), stop])


def test_a_failed_evaluation_is_logged_once(state, phase, run, evaluator, caplog):
    def fail(state, metrics):
        if int(state.epoch) == 3:
            evaluator.answer(1)
        return state

    chain = [fail, evaluator.arriving({4: [2]}), collect_scores(run, "full"), *requesting(run)]
    _, history = trainer.fit(state, phase, epochs=6, hooks=chain)
    assert [epoch for epoch, _ in collected(history)] == [None, None, None, 2, None, None]
    failures = [one.message for one in caplog.records if "evaluation of" in one.message]
    assert failures == ["collect_scores/full: the evaluation of epoch 1 failed: no such\\x1b file"]


def test_a_declared_score_that_is_missing_is_logged(state, phase, run, evaluator, caplog):
    collect = collect_scores(run, "full", scores=("full/loss", "full/lost"))
    chain = [evaluator.arriving({3: [1]}), collect, *requesting(run)]
    trainer.fit(state, phase, epochs=3, hooks=chain)
    assert "the suite measured no full/lost; it measured full/accuracy, full/loss" in caplog.text


@pytest.mark.parametrize("number", [2, 3, 4])
def test_law_5_nothing_is_taken_twice_if_the_same_results_arrive(state, phase, tmp_path, number):
    """Results arrive at the same epochs in both runs, one of which is interrupted."""

    def go(name, *others):
        run = Run(tmp_path / name)
        evaluator = Evaluator(run)
        arriving = evaluator.arriving({3: [1], 5: [3, 2]})
        chain = [arriving, collect_scores(run, "full"), *others, *requesting(run)]
        end, history = trainer.fit(state, phase, epochs=6, hooks=chain)
        evaluator.store.close()
        return end, collected(history)

    whole, all_of_them = go("whole")
    _, before = go("part", _interrupt_at(number))
    end, after = go("part")
    assert before + after == all_of_them
    assert trainer.fingerprint(end) == trainer.fingerprint(whole)


def _interrupt_at(number):
    def end_early(state, metrics):
        if int(state.epoch) == number:
            raise trainer.Interrupt("enough")
        return state

    return hooks.observe(end_early)


@hooks.reads("full/loss")
def follow(state, metrics):
    """A control hook that depends on the results and changes training."""
    return state.replace(
        params={**state.params, "w": state.params["w"] + metrics["full/loss"]},
    )


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_waiting_adds_each_result_at_the_next_epoch(state, phase, run, delay):
    collect = collect_scores(run, "full", scores=("full/loss",), wait=True, timeout=LIMIT)
    with working(run, measure_epoch, delay):
        end, history = trainer.fit(
            state, phase, epochs=4, hooks=[collect, follow, *requesting(run)]
        )
    assert [epoch for epoch, _ in collected(history)] == [None, 1, 2, 3]
    assert end.hook_state["collect_scores/full"] == {"taken": 3}


def test_law_5_a_run_that_waits_is_the_same_wherever_it_is_interrupted(state, phase, tmp_path):
    def go(name, *others, delay=0.0):
        run = Run(tmp_path / name)
        collect = collect_scores(run, "full", scores=("full/loss",), wait=True, timeout=LIMIT)
        requesting = [hooks.every(2, request_evaluation(run, "full")), saving(run)]
        with working(run, measure_epoch, delay):
            return trainer.fit(
                state, phase, epochs=5, hooks=[collect, follow, *others, *requesting]
            )[0]

    whole = trainer.fingerprint(go("whole"))
    for number in (2, 3, 4):
        go(f"{number}", _interrupt_at(number))
        assert trainer.fingerprint(go(f"{number}", delay=0.01)) == whole


def test_a_failed_evaluation_is_not_waited_for(state, phase, run, caplog):
    def measure(epoch):
        if epoch == 2:
            raise ValueError("out of memory")
        return measure_epoch(epoch)

    collect = collect_scores(run, "full", wait=True, timeout=LIMIT)
    with working(run, measure):
        _, history = trainer.fit(state, phase, epochs=4, hooks=[collect, *requesting(run)])
    assert [epoch for epoch, _ in collected(history)] == [None, 1, None, 3]
    assert "the evaluation of epoch 2 failed: out of memory" in caplog.text


def test_epochs_without_a_checkpoint_are_not_waited_for(state, phase, run):
    saves = hooks.when(lambda state, metrics: int(state.epoch) == 2, saving(run))
    chain = [
        collect_scores(run, "full", wait=True, timeout=LIMIT),
        request_evaluation(run, "full"),
        saves,
    ]
    with working(run, measure_epoch):
        _, history = trainer.fit(state, phase, epochs=4, hooks=chain)
    assert [epoch for epoch, _ in collected(history)] == [None, None, 2, None]


def test_waiting_has_a_limit(state, phase, run):
    collect = collect_scores(run, "full", wait=True, timeout=0.05)
    with pytest.raises(
        TimeoutError, match="waited 0.05 s for the evaluation of epoch 1.*an evaluator of this"
    ):
        trainer.fit(state, phase, epochs=3, hooks=[collect, *requesting(run)])
    with Store(run.url) as store:
        assert store.run("digits").state == "failed"


def test_results_that_nobody_requests_cannot_be_waited_for(state, phase, run):
    with pytest.raises(
        ValueError, match=r"waits for what request_evaluation\(run, 'full'\) requests"
    ):
        trainer.fit(
            state,
            phase,
            epochs=3,
            hooks=[collect_scores(run, "full", wait=True, timeout=LIMIT), saving(run)],
        )


def test_a_store_that_is_away_is_logged_and_read_again(
    state, phase, run, evaluator, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "entracte")
    monkeypatch.setattr(collecting, "RETRY_SECONDS", 0.0)
    reads = []

    def read(*arguments, **settings):
        reads.append(arguments)
        if len(reads) < 4:  # at epochs 1 to 3
            raise Unreachable("the server is down")
        return list_answers(*arguments, **settings)

    monkeypatch.setattr(collecting, "list_answers", read)
    chain = [evaluator.arriving({3: [1]}), collect_scores(run, "full"), *requesting(run)]
    _, history = trainer.fit(state, phase, epochs=5, hooks=chain)
    assert [epoch for epoch, _ in collected(history)] == [None, None, None, 1, None]
    assert caplog.text.count("the server is down: results by 'full' cannot be read") == 1
    assert caplog.text.count("is back after") == 1


def test_a_store_that_is_away_is_not_read_at_every_event(state, phase, run, monkeypatch):
    reads = []

    def read(*arguments, **settings):
        reads.append(arguments)
        raise Unreachable("the server is down")

    Store(run.url).close()
    monkeypatch.setattr(collecting, "list_answers", read)
    trainer.fit(state, phase, epochs=5, hooks=[collect_scores(run, "full")])
    assert len(reads) == 1


def test_results_of_an_earlier_run_of_this_name_are_not_taken(
    state, phase, run, evaluator, monkeypatch
):
    """The store does not know yet, when it is read, that the run starts fresh."""
    trainer.fit(state, phase, epochs=3, hooks=requesting(run))
    for epoch in (1, 2, 3):
        evaluator.answer(epoch, accuracy=7.0)
    shutil.rmtree(run.directory / "checkpoints")
    with Store(run.url) as store:
        stale = collecting.list_answers(store, run.name, "full", after=0)
    assert len(stale) == 3
    monkeypatch.setattr(collecting, "list_answers", lambda *arguments, **settings: stale)
    other = state.replace(params={**state.params, "w": jnp.array([5.0, 5.0])})
    chain = [collect_scores(run, "full"), *requesting(run)]
    _, history = trainer.fit(other, phase, epochs=4, hooks=chain)
    assert [epoch for epoch, _ in collected(history)] == [None, None, None, None]


@pytest.fixture
def evaluated(state, run):
    """A state at epoch 3, whose checkpoint of epoch 2 was evaluated."""
    with Checkpoints(run.directory) as checkpoints:
        checkpoints.save(state.replace(epoch=jnp.int32(2)))
    with Store(run.url) as store:
        checksum = describe_checkpoint(run.directory, 2).checksum
        create_request(store, run.name, 2, "full", checksum=checksum, time=0.0)
        finish_request(
            store,
            claim_request(store, "tester", ["full"], lease=60),
            {"full/a": 1.0, "full/b": 2.0},
        )
    return state.replace(epoch=jnp.int32(3))


def test_all_processes_take_what_the_main_process_found(evaluated, run, monkeypatch):
    """The main process and then another one, which receives what the first has sent."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    scores = ("full/a", "full/absent")
    sent = []
    monkeypatch.setattr(
        collecting, "from_main_process", lambda values: sent.append(values) or values
    )
    hook = collect_scores(run, "full", scores=scores)
    main = hook(evaluated, {})
    hook.close(None)
    monkeypatch.setattr(collecting, "is_main_process", lambda: False)
    monkeypatch.setattr(
        collecting,
        "from_main_process",
        lambda values: dict(zip(values, sent[0].values(), strict=True)),
    )
    other = collect_scores(run, "full", scores=scores)(evaluated, {})
    assert main.scores == other.scores == {"full/a": 1.0, "full/epoch": 2.0}
    assert main.hook_state == other.hook_state == {"collect_scores/full": {"taken": 2}}


def test_it_keeps_the_laws(evaluated, run):
    after = check_hook(collect_scores(run, "full"), evaluated, {})
    assert after.scores == {"full/a": 1.0, "full/b": 2.0, "full/epoch": 2.0}
    again = after.replace(scores={})
    hook = collect_scores(run, "full")
    assert hook(again, {}) is again
    hook.close(None)


def test_a_result_of_no_earlier_epoch_is_not_taken(evaluated, run):
    """A damaged checkpoint, from before the run resumed, may lie where a new one is to come."""
    now = evaluated.replace(epoch=jnp.int32(2))
    hook = collect_scores(run, "full")
    assert hook(now, {}) is now
    hook.close(None)


def test_a_dry_run_waits_for_nothing(state, phase, run):
    collect = collect_scores(run, "full", wait=True, timeout=LIMIT)
    with working(run, measure_epoch):
        _, history = trainer.fit(
            state, phase, epochs=2, hooks=[collect, *requesting(run)], dry_run=True
        )
    assert [epoch for epoch, _ in collected(history)] == [None, 1]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"suite": "a/b"}, ValueError, "a suite needs a name"),
        ({"scores": "full/loss"}, ValueError, r"such as \('full/loss',\)"),
        ({"timeout": 0}, ValueError, "timeout must be positive"),
        ({"run": "runs/digits"}, TypeError, "collect_scores takes a recorded run"),
    ],
)
def test_settings_are_checked(run, settings, error, says):
    with pytest.raises(error, match=says):
        collect_scores(**{"run": run, "suite": "full", **settings})
