"""Spans: named, nested by thread, heard where someone listens; and what a run tells of itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import hooks
import trainer
from trainer import data
from trainer.data.iteration.index_loader import Prefetcher
from trainer.host import time_spans
from trainer.host.time_spans import StepProgress, add_listener, list_open_spans, span, time_items


@pytest.fixture
def heard():
    """The spans that end from now on."""
    found = []
    stop = add_listener(found.append)
    yield found
    stop()
    assert time_spans._listeners == ()


def labels(spans):
    """Return each span as `outer > inner`."""
    return [" > ".join(" ".join(part).strip() for part in one.path) for one in spans]


def test_without_a_listener_a_span_does_nothing():
    assert time_spans._listeners == ()
    assert span("wait", "train") is span("epoch", number=3)
    with span("wait"):
        assert threading.get_ident() not in time_spans._innermost


def test_spans_nest_and_end_in_time(heard):
    with span("epoch", number=7):
        with span("wait", "train"):
            pass
        with span("wait", "val"):
            pass
    assert labels(heard) == ["epoch > wait train", "epoch > wait val", "epoch"]
    train, val, epoch = heard
    assert epoch.began <= train.began <= train.ended <= val.began <= val.ended <= epoch.ended
    assert [one.number for one in heard] == [None, None, 7]
    assert {(one.thread, one.thread_name) for one in heard} == {
        (threading.get_ident(), threading.current_thread().name)
    }


def test_a_span_that_fails_is_reported_and_raises(heard):
    with pytest.raises(ZeroDivisionError), span("epoch"), span("hook", "divide"):
        1 / 0  # noqa: B018
    with span("close"):
        pass
    assert labels(heard) == ["epoch > hook divide", "epoch", "close"]


def test_threads_are_apart(heard):
    def work():
        with span("save", "write"):
            pass

    with span("epoch"):
        thread = threading.Thread(target=work, name="saver")
        thread.start()
        thread.join()
    assert labels(heard) == ["save write", "epoch"]
    assert heard[0].thread_name == "saver"
    assert heard[0].thread != heard[1].thread


def test_spans_that_began_before_the_listener_are_not_reported(heard):
    late = []
    with span("epoch"):
        stop = add_listener(late.append)
        with span("wait"):
            pass
    stop()
    stop()
    with span("close"):
        pass
    assert labels(heard) == ["epoch > wait", "epoch", "close"]
    assert labels(late) == ["epoch > wait"]


def test_the_first_listener_gets_spans_from_then_on():
    found = []
    with span("epoch"):
        stop = add_listener(found.append)
        with span("wait"):
            pass
    stop()
    assert labels(found) == ["wait"]


def test_spans_cover_the_wait_for_items_and_not_their_use(heard):
    def source():
        with span("transfer"):
            pass
        yield 1
        raise OSError("gone")

    items = time_items(source(), "data", "train")
    next(items)
    with span("dispatch"):
        pass
    with pytest.raises(OSError, match="gone"):
        next(items)
    assert labels(heard) == ["data train > transfer", "data train", "dispatch", "data train"]
    assert list(time_items([], "data")) == []


def test_the_exception_of_a_listener_is_raised():
    def fail(one):
        raise OSError("no room")

    stop = add_listener(fail)
    try:
        with pytest.raises(OSError, match="no room"), span("epoch"):
            pass
    finally:
        stop()
    assert threading.get_ident() not in time_spans._innermost


def test_a_run_reports_all_its_spans(state, phase, heard, tmp_path):
    val = trainer.evaluation(
        lambda state, batch: {"error": batch["inputs"]},
        data.Stream([{"inputs": np.ones(2, np.float32)}] * 3, superbatch=2),
    )
    chain = hooks.chain(
        hooks.on("train", hooks.observe(lambda state, metrics: state)),
        hooks.evaluate(val),
        hooks.background(hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl"))),
        hooks.save_checkpoints(tmp_path, max_cost=None),
    )
    trainer.fit(state, phase, epochs=2, hooks=chain)
    assert {
        "compile train",
        "epoch",
        "epoch > data train",
        "epoch > dispatch train",
        "epoch > wait train",
        "epoch > event train > hook <lambda>",
        "epoch > event epoch > hook evaluate/val > data val > transfer",
        "epoch > event epoch > hook evaluate/val > compile val",
        "epoch > event epoch > hook evaluate/val > dispatch val",
        "epoch > event epoch > hook evaluate/val > wait val",
        "epoch > event epoch > hook log_metrics",
        "epoch > event epoch > flush log_metrics > writer JsonLines",
        "epoch > event epoch > flush save_checkpoints/last > save wait",
        "epoch > event epoch > hook save_checkpoints > save copy",
        "event end",
        "close save_checkpoints/last > save wait",
        "close log_metrics > writer JsonLines",
    } <= set(labels(heard))
    elsewhere = {one.thread_name: labels([one]) for one in heard if one.thread != heard[0].thread}
    assert elsewhere == {
        "entracte-save": ["save write"],
        "log_metrics": ["hook log_metrics"],
        "JsonLines": ["write JsonLines"],
    }
    found = labels(heard)
    assert [one.number for one in heard if one.path == (("epoch", ""),)] == [1, 2]
    assert found.count("compile train") == 2  # traced, then compiled beside the evaluation
    assert found.count("epoch > wait train") == 2


def test_prefetched_data_is_on_its_own_thread(heard):
    assert Prefetcher(lambda number: number + 1)(1, then=2) == 2
    (read, *_) = heard
    assert labels([read]) == ["read"]
    assert read.thread_name.startswith("entracte-data")


def test_a_run_that_fails_ends_its_spans(state, phase, heard):
    def fail(state, metrics):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, phase, epochs=3, hooks=fail)
    assert labels(heard)[-3:] == ["epoch > event epoch > hook fail", "epoch > event epoch", "epoch"]
    assert threading.get_ident() not in time_spans._innermost


class Mark:
    """An array that is ready when a test says so."""

    ready = False

    def is_ready(self):
        return self.ready


def test_steps_are_done_in_order_once_their_mark_is_ready(heard):
    first, second = Mark(), Mark()
    with span("epoch"), span("dispatch", "train"):
        advance = time_spans.start_step_counter("train", 10)
        advance.add(4, first)
        advance.add(2, second)
        second.ready = True
        assert advance.steps() == StepProgress("train", 0, 10)
        first.ready = True
        (epoch, dispatch) = list_open_spans(threading.get_ident())
    assert (epoch.steps, dispatch.steps) == ((), (StepProgress("train", 6, 10),))


def test_unread_step_counts_do_not_pile_up():
    advance, done = time_spans.StepCounter("train", None), Mark()
    done.ready = True
    for _ in range(1000):
        advance.add(1, done)
    assert len(advance._waiting) <= 64
    assert advance.steps().done == 1000


def test_without_a_listener_no_steps_are_counted():
    with span("epoch"):
        assert time_spans.start_step_counter("train", 10) is None


def _one(state, batch):
    return state.replace(step=state.step + 1), {"loss": batch["inputs"].mean()}


NUMBERS = {"inputs": np.ones((12, 2), np.float32)}


@pytest.mark.parametrize(
    ("source", "executor", "total"),
    [
        (data.Arrays(NUMBERS, 2), "scan", 6),
        (data.Arrays(NUMBERS, 2), "step", 6),
        (data.Arrays(NUMBERS, 2, steps_per_epoch=5), "step", 5),
        (data.Stream([{"inputs": np.ones((2, 2), np.float32)}] * 5, superbatch=2), "scan", None),
    ],
)
def test_a_phase_counts_its_steps(state, heard, source, executor, total):
    phase = trainer.training(_one, source, executor=executor)
    with span("epoch"):
        for number in range(2):  # also with what a first call compiled
            state, _, measured = phase.execute(phase.add_position(state), None, donate=number > 0)
            _, traces, taken = measured.read()
        (epoch,) = list_open_spans(threading.get_ident())
    assert epoch.steps == (StepProgress("train", taken, total),)
    assert taken == len(traces["train/loss"])


def test_an_evaluation_counts_its_steps_within_the_hook_that_runs_it(state, heard):
    val = trainer.evaluation(lambda state, b: {"x": b["inputs"][:, 0]}, data.Arrays(NUMBERS, 5))
    with span("hook", "evaluate"):
        trainer.evaluate(state, val)
        assert list_open_spans(threading.get_ident())[0].steps == (StepProgress("val", 3, 3),)
