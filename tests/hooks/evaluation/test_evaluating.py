"""Evaluation between epochs."""

import json
import logging
import time

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from hooks import testing
from trainer.runs.requests import claim_request, finish_request


def test_its_scores_are_in_the_history_and_reach_later_hooks(start, train, val):
    chain = hooks.chain(hooks.evaluate(val), hooks.stop_early("val/loss", patience=1, mode="max"))
    state, history = trainer.fit(start, train, epochs=9, hooks=chain)
    assert int(state.epoch) == 2
    assert history[1]["val/loss"] < history[0]["val/loss"]
    assert 0 < history[0]["val/accuracy"] <= 1


def test_it_measures_what_a_phase_in_the_program_measures(start, train, val):
    _, history = trainer.fit(start, [train, val], epochs=2)
    _, scored = trainer.fit(start, train, epochs=2, hooks=hooks.evaluate(val))
    for name in ("val/loss", "val/accuracy"):
        assert [e[name] for e in history] == [e[name] for e in scored]


def test_law_3_it_changes_nothing(start, train, val):
    alone, _ = trainer.fit(start, train, epochs=3)
    evaluated, _ = trainer.fit(start, train, epochs=3, hooks=hooks.evaluate(val))
    assert trainer.fingerprint(alone) == trainer.fingerprint(evaluated)


def test_it_compiles_once(start, train, task, digits):
    def measure(state, batch):  # of its own, which shares nothing with other tests
        return task.measure.function(state, batch)

    val = trainer.evaluation(measure, digits[1])
    for epochs in (2, 3):
        trainer.fit(start, train, epochs=epochs, hooks=hooks.evaluate(val))
    assert len(val._shared.compiled) == 1


def test_it_evaluates_the_average_of_the_hook_of_that_name(start, train, val):
    chain = hooks.chain(hooks.average_params(0.5), hooks.evaluate(val, params="average_params"))
    state, history = trainer.fit(start, train, epochs=3, hooks=chain)
    average = state.replace(params=state.hook_state["average_params"]["params"])
    assert hooks.evaluate(val)(average, {}).scores["val/loss"] == history[-1]["val/loss"]
    assert hooks.evaluate(val)(state, {}).scores["val/loss"] != history[-1]["val/loss"]


def test_the_average_must_stand_before_it(start, train, val):
    evaluate = hooks.evaluate(val, params="average_params")
    with pytest.raises(
        ValueError,
        match="'evaluate/val' needs the hook state of 'average_params', which is not in the chain",
    ):
        trainer.fit(start, train, epochs=1, hooks=evaluate)
    with pytest.raises(ValueError, match="which is not before it"):
        trainer.fit(start, train, epochs=1, hooks=[evaluate, hooks.average_params()])


def test_a_training_phase_is_refused(train):
    with pytest.raises(ValueError, match=r"made by trainer\.evaluation; phase 'train'"):
        hooks.evaluate(train)


def test_it_keeps_the_laws(start, val):
    testing.check_hook(hooks.evaluate(val), start, {})


def test_several_splits_are_evaluated_in_one_run(start, train, val, task, digits):
    again = trainer.evaluation(task.measure, digits[0], name="again")
    chain = hooks.chain(hooks.evaluate(val), hooks.every(2, hooks.evaluate(again)))
    state, history = trainer.fit(start, train, epochs=2, hooks=chain)
    assert "again/loss" not in history[0]
    assert {"val/loss", "val/accuracy", "again/loss", "again/accuracy"} <= history[1].keys()
    scores = trainer.evaluate(state, [val, again])
    assert scores == {name: history[1][name] for name in scores}


class TestSanity:
    """The split is evaluated before anything is trained."""

    def run(self, start, train, val, tmp_path, *, epochs=2):
        log = hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl"))
        saving = hooks.save_checkpoints(tmp_path, max_cost=None)
        chain = [log, hooks.evaluate(val, sanity=True), saving]
        result = trainer.fit(start, train, epochs=epochs, hooks=chain)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return *result, [json.loads(line) for line in lines]

    def test_it_is_logged_and_recorded_at_step_0(self, start, train, val, tmp_path, caplog):
        caplog.set_level(logging.INFO, "entracte")
        _, history, records = self.run(start, train, val, tmp_path)
        before = trainer.evaluate(start, val)
        assert records[0] == {"step": 0, "epoch": 0, **before}
        assert [record["epoch"] for record in records] == [0, 1, 2]
        assert [epoch["val/loss"] for epoch in history] == [r["val/loss"] for r in records[1:]]
        assert f"val/loss {before['val/loss']:.4g}" in caplog.text

    def test_a_run_that_resumes_repeats_nothing(self, start, train, val, tmp_path, caplog):
        self.run(start, train, val, tmp_path)
        caplog.clear()
        _, _, records = self.run(start, train, val, tmp_path, epochs=3)
        assert [record["epoch"] for record in records] == [0, 1, 2, 3]
        assert "before training" not in caplog.text

    def test_a_run_that_starts_again_has_one_record_of_it(self, start, train, val, tmp_path):
        file = tmp_path / "metrics.jsonl"
        log = hooks.log_metrics(hooks.JsonLines(file), hooks.TensorBoard(tmp_path))
        for _ in range(2):
            trainer.fit(start, train, epochs=1, hooks=[hooks.evaluate(val, sanity=True), log])
        assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [0, 1]
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(tmp_path))
        accumulator.Reload()
        assert [event.step for event in accumulator.Scalars("val/loss")] == [0, 6]

    def test_writers_that_hooks_share_keep_it(self, start, train, val, tmp_path):
        lines = hooks.JsonLines(tmp_path / "metrics.jsonl")
        other = hooks.record("text", lambda s, m: hooks.Text("hello"), lines)
        chain = [hooks.evaluate(val, sanity=True), hooks.log_metrics(lines), other]
        trainer.fit(start, train, epochs=1, hooks=chain)
        records = [json.loads(line) for line in lines.path.read_text().splitlines()]
        assert [("val/loss" in record, record["epoch"]) for record in records] == [
            (True, 0),
            (True, 1),
            (False, 1),
        ]

    def test_the_console_shows_it(self, start, train, val):
        from io import StringIO

        from rich.console import Console

        for terminal in (False, True):
            file = StringIO()
            console = hooks.Console(console=Console(file=file, force_terminal=terminal, width=120))
            chain = [hooks.evaluate(val, sanity=True), hooks.log_metrics(console)]
            trainer.fit(start, train, epochs=1, hooks=chain)
            assert "val/loss" in file.getvalue()

    def test_a_score_that_is_not_finite_is_named(self, start, train, val):
        params = jax.tree.map(lambda w: w.at[0].set(jnp.nan), start.params)
        with pytest.raises(
            ValueError, match="'evaluate/val' measures the state before training.*val/loss is nan:"
        ) as raised:
            trainer.fit(
                start.replace(params=params),
                train,
                epochs=1,
                hooks=hooks.evaluate(val, sanity=True),
            )
        assert raised.value.__notes__ == ["in hook 'evaluate/val/start' at 'start' of epoch 0"]

    def test_it_evaluates_the_requested_average(self, start, train, val):
        chain = hooks.chain(
            hooks.average_params(0.5), hooks.evaluate(val, params="average_params", sanity=True)
        )
        _, history = trainer.fit(start, train, epochs=2, hooks=chain)
        assert len(history) == 2

    def test_it_keeps_the_laws_and_changes_nothing(self, start, train, val):
        testing.check_hook(hooks.evaluate(val, sanity=True), start, {})
        alone, _ = trainer.fit(start, train, epochs=2)
        evaluated, _ = trainer.fit(start, train, epochs=2, hooks=hooks.evaluate(val, sanity=True))
        assert trainer.fingerprint(alone) == trainer.fingerprint(evaluated)


class TestRemote:
    """A suite that remote evaluators run."""

    @pytest.fixture
    def run(self, tmp_path):
        return trainer.runs.Run(tmp_path / "digits")

    def test_it_combines_request_evaluation_and_collect_scores(self, run):
        remote = hooks.evaluate("full", remote=run, scores=["full/loss"], wait=True)
        written_out = hooks.chain(
            hooks.request_evaluation(run, "full"),
            hooks.collect_scores(run, "full", scores=["full/loss"], wait=True),
        )
        assert str(remote) == str(written_out)

    def test_it_requests_evaluations_and_takes_what_arrives(self, state, phase, run):
        def answer(state, metrics):
            if int(state.epoch) == 3:
                deadline = time.monotonic() + 30
                with trainer.runs.Store(run.url) as store:
                    while not (request := claim_request(store, "tester", ["full"], lease=60)):
                        assert time.monotonic() < deadline, "nothing was requested"
                        time.sleep(0.002)
                    finish_request(store, request, {"full/loss": 0.25})
            return state

        stop = hooks.stop_early("full/loss", patience=9)
        chain = [
            answer,
            hooks.evaluate("full", remote=run, scores=["full/loss"]),
            stop,
            hooks.save_checkpoints(run.directory, max_cost=None),
        ]
        _, history = trainer.fit(state, phase, epochs=3, hooks=chain)
        assert (history[2]["full/loss"], history[2]["full/epoch"]) == (0.25, 1.0)

    def test_arguments_that_do_not_go_together_are_refused(self, val, run):
        for wrong, says in (
            (lambda: hooks.evaluate("full"), "got 'full' without remote"),
            (lambda: hooks.evaluate(val, wait=True), "with which scores and wait go; got a Phase"),
            (lambda: hooks.evaluate(val, remote=run), "takes the name of a suite.*got 'Phase'"),
            (lambda: hooks.evaluate("full", remote=run, sanity=True), "neither params nor sanity"),
            (lambda: hooks.evaluate("full", remote="runs"), "takes a recorded run"),
        ):
            with pytest.raises(TypeError, match=says):
                wrong()
