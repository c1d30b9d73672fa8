"""Requests are answered once, whatever happens to the workers."""

import logging
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

import trainer
from trainer.evaluators import Suite, WorkerSettings, list_workers, work
from trainer.hook import Hook
from trainer.runs import Store, Unreachable, requests

VICTIM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from trainer import TrainState, data, evaluation
from trainer.evaluators import Suite, WorkerSettings, work

def hang(state, metrics):
    print("evaluating", flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    zeros = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    state = TrainState.create(params=zeros, rng=jax.random.key(0))
    source = data.Arrays({"inputs": np.zeros(1)}, batch_size=1)
    phase = evaluation(lambda state, batch: {"x": batch["inputs"]}, source)
    settings = WorkerSettings(lease=1.0)
    work(sys.argv[1], Suite("digits", state, phase, hooks=lambda folder: hang), settings)
"""


def outcomes(store):
    return {r.epoch: (r.state, r.tries, r.error) for r in requests.list_requests(store, "one")}


def suite_with(start, val, look):
    """Return a suite with a function as hook."""

    def hook(state, metrics):
        look(state, metrics)
        return state

    return Suite("digits", start, val, hooks=lambda folder: hook)


def test_a_full_cycle(project, store, start, digits, task):
    val = trainer.evaluation(lambda *both: task.measure(*both), digits[1])
    suite = Suite("digits", start, val)
    project.request(1, 2, 3)
    assert work(project.folder, suite, idle=0) == (3, 0, 0, 0)
    assert len(val._shared.compiled) == 1
    assert outcomes(store) == dict.fromkeys((1, 2, 3), ("done", 1, ""))
    # The same scores as in training, bit for bit: key, step and epoch are restored too.
    wanted = {("digits", n): trainer.evaluate(state, val) for n, state in project.states.items()}
    assert requests.list_results(store, "one") == wanted
    project.request(1, 2, 3)  # which changes nothing
    assert work(project.folder, suite, idle=0) == (0, 0, 0, 0)
    assert list_workers(store) == []


def test_one_worker_for_several_suites(project, store, suite, start, digits, task):
    exam = Suite("exam", start, trainer.evaluation(task.measure, digits[0], name="exam"))
    project.request(1)
    project.request(1, suite="exam")
    project.request(1, suite="another's")
    assert work(project.folder, [suite, exam], idle=0).done == 2
    found = requests.list_results(store, "one")
    assert found.keys() == {("digits", 1), ("exam", 1)}
    assert found["exam", 1].keys() == {"exam/loss", "exam/accuracy"}


def test_a_worker_can_request_all_checkpoints_of_a_run(project, store, suite):
    project.request(2)
    assert work(project.folder, suite, idle=0).done == 1
    project.remove(1)
    assert work(project.folder, suite, idle=0, runs=["one"]).done == 1
    assert requests.list_results(store, "one").keys() == {("digits", 2), ("digits", 3)}
    with pytest.raises(KeyError, match="no run 'two'"):
        work(project.folder, suite, idle=0, runs=["two"])


def test_hooks_see_the_state_add_scores_and_write_artifacts(project, store, start, val):
    seen, closed = [], []

    def play(folder):
        def record(state, metrics):
            seen.append((int(state.epoch), dict(metrics)))
            (folder / "replays").mkdir(exist_ok=True)
            (folder / "replays" / f"{int(state.epoch)}-0.json").write_text("{}")
            return state.replace(scores={"replayed": 1.0})

        return Hook(record, "play", stage="observe", close=lambda error: closed.append(folder))

    project.request(1, 2)
    assert work(project.folder, Suite("digits", start, val, hooks=play), idle=0).done == 2
    scores = trainer.evaluate(project.states[1], val)
    assert seen[0] == (1, scores)
    assert requests.list_results(store, "one")["digits", 1] == {**scores, "replayed": 1.0}
    folder = project.run / "evaluations" / "digits"
    assert closed == [folder]
    assert [(a.path, a.kind, a.epoch, a.step, a.bytes) for a in store.artifacts("one")] == [
        (str(folder / "replays" / f"{epoch}-0.json"), "replay", epoch, 7 * epoch, 2)
        for epoch in (1, 2)
    ]


def test_a_suite_that_always_fails_is_tried_a_few_times(project, store, start, val, caplog):
    def fail(state, metrics):
        if int(state.epoch) == 1:
            raise OSError("no display")

    project.request(1, 2)
    worked = work(
        project.folder, suite_with(start, val, fail), WorkerSettings(tries=3, pause=0.001), idle=0
    )
    assert worked == (1, 1, 2, 0)
    states = outcomes(store)
    assert states[1][:2] == ("failed", 3)
    assert states[1][2].startswith("OSError: no display\nin hook 'hook' at 'epoch' of epoch 1")
    assert states[2] == ("done", 1, "")
    assert "at try 3, for good" in caplog.text


def test_failed_requests_can_be_reopened(project, store, suite, start, val):
    def fail(state, metrics):
        raise OSError("no display")

    project.request(1)
    assert (
        work(
            project.folder,
            suite_with(start, val, fail),
            WorkerSettings(tries=1, pause=0.001),
            idle=0,
        ).failed
        == 1
    )
    assert work(project.folder, suite, idle=0) == (0, 0, 0, 0)
    assert work(project.folder, suite, idle=0, again=True) == (1, 0, 0, 0)
    assert outcomes(store) == {1: ("done", 1, "")}


def test_a_request_that_cannot_succeed_is_tried_once(project, store, suite, start, val):
    project.request(1, 2, 3)
    project.remove(1)
    (project.run / "checkpoints" / "2" / "arrays" / "process_0").write_bytes(b"")
    assert work(project.folder, suite, WorkerSettings(pause=0.001), idle=0) == (1, 2, 0, 0)
    states = outcomes(store)
    assert states[1][:2] == states[2][:2] == ("failed", 1)
    assert "keep more of them" in states[1][2]
    assert "arrays/process_0 has 0 bytes" in states[2][2]
    assert states[3][0] == "done"


def test_another_network_fails_with_what_differs(project, store, start):
    project.request(1)
    small = start.replace(params={"w": jnp.zeros((32, 10)), "b": start.params["b"]})
    phase = trainer.Phase("val", lambda s, data: (s, None, {"x": s.step}), updates_state=False)
    assert (
        work(
            project.folder, Suite("digits", small, phase), WorkerSettings(pause=0.001), idle=0
        ).failed
        == 1
    )
    ((state, tries, error),) = outcomes(store).values()
    assert (state, tries) == ("failed", 1)
    assert "params/w: saved float32[64, 10], wanted float32[32, 10]" in error


def test_a_long_evaluation_keeps_its_lease(project, store, start, val):
    others = []

    def dawdle(state, metrics):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            others.append(requests.claim_request(store, "other", ["digits"], lease=1))
            time.sleep(0.02)

    project.request(1)
    suite, settings = suite_with(start, val, dawdle), WorkerSettings(lease=1.0)
    assert work(project.folder, suite, settings, idle=0) == (1, 0, 0, 0)
    assert set(others) == {None}


def test_an_answer_is_dropped_if_another_worker_has_the_request(project, store, start, val, caplog):
    other = []

    def lose(state, metrics):
        store.connection.execute("UPDATE requests SET lease = 0")
        other.append(requests.claim_request(store, "other", ["digits"], lease=60))

    project.request(1)
    assert work(project.folder, suite_with(start, val, lose), idle=0) == (0, 0, 0, 1)
    assert requests.list_results(store, "one") == {}
    assert requests.finish_request(store, other[0], {"val/loss": 1.0})
    assert "dropped, it no longer belongs to this worker" in caplog.text


@pytest.mark.parametrize("times", [1, 2])
def test_signals(project, store, start, val, times):
    seen = []

    def send(state, metrics):
        seen.extend((row.doing, row.pid) for row in list_workers(store))
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)

    project.request(1, 2)
    with pytest.raises(SystemExit) as ended:
        work(project.folder, suite_with(start, val, send))
    assert ended.value.code == 143
    first, second = outcomes(store).values()
    if times == 1:  # the running one is finished, and no other started
        assert first == ("done", 1, "")
    else:
        assert first == ("open", 1, "its worker was interrupted")
    assert second == ("open", 0, "")
    assert all(pid == os.getpid() for _, pid in seen)
    assert list_workers(store) == []


def test_no_request_is_lost_when_a_worker_is_killed(project, store, suite, tmp_path):
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)
    project.request(1, 2)
    victim = subprocess.Popen(
        [sys.executable, script, project.folder],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    try:
        assert victim.stdout.readline() == "evaluating\n"
        time_of_claim = requests.list_requests(store, "one")[0]
        assert (time_of_claim.state, time_of_claim.tries) == ("claimed", 1)
    finally:
        victim.kill()
        victim.communicate(timeout=60)
    store.connection.execute("UPDATE requests SET lease = 0")  # it expires
    assert work(project.folder, suite, idle=0) == (2, 0, 0, 0)
    assert {epoch: tries for epoch, (_, tries, _) in outcomes(store).items()} == {1: 2, 2: 1}
    assert requests.list_results(store, "one").keys() == {("digits", 1), ("digits", 2)}
    assert [row.pid for row in list_workers(store)] == [victim.pid]


def test_a_missing_store_is_an_error_at_once(tmp_path, suite):
    with pytest.raises(FileNotFoundError, match="there is no store at"):
        work(tmp_path / "nowhere", suite)
    (tmp_path / "store.sqlite").write_text("a text of more than some bytes, and no database" * 9)
    with pytest.raises(Unreachable, match="not the file of a store"):
        work(tmp_path, suite)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lease": 0}, "lease must be positive"),
        ({"pause": float("inf")}, "pause must be positive"),
        ({"tries": 0}, "tries must be at least 1"),
        ({"limit": -1}, "limit must be positive"),
    ],
)
def test_settings_are_checked(tmp_path, suite, settings, says):
    with pytest.raises(ValueError, match=says):
        work(tmp_path, suite, WorkerSettings(**settings))


def test_suites_need_names_of_their_own(project, store, suite):
    for suites in ([], [suite, suite]):
        with pytest.raises(ValueError, match="suites with names of their own"):
            work(project.folder, suites)


def test_a_request_of_a_removed_run_fails(project, suite, caplog):
    project.request(1)
    with Store(project.folder) as store:
        store.connection.execute("DELETE FROM runs")
        with caplog.at_level(logging.WARNING, "entracte"):
            work(project.folder, suite, WorkerSettings(pause=0.001), idle=0)
        assert outcomes(store)[1][:2] == ("failed", 1)
