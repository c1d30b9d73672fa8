"""Spans: named, nested by thread, heard where someone listens; and what a run tells of itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import hooks
import trainer
from trainer import data, timing
from trainer.data.ahead import Ahead
from trainer.timing import listen, span, spans


@pytest.fixture
def heard():
    """The spans that end from now on."""
    found = []
    stop = listen(found.append)
    yield found
    stop()
    assert timing._listeners == ()


def labels(spans):
    """Give each span as `outer > inner`."""
    return [" > ".join(" ".join(part).strip() for part in one.path) for one in spans]


def test_where_nobody_listens_a_span_is_nothing():
    assert timing._listeners == ()
    assert span("wait", "train") is span("epoch", number=3)
    with span("wait"):
        assert timing._here.path == ()


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


def test_a_span_that_fails_is_heard_and_the_failure_goes_on(heard):
    with pytest.raises(ZeroDivisionError), span("epoch"), span("hook", "divide"):
        1 / 0  # noqa: B018
    with span("close"):
        pass
    assert labels(heard) == ["epoch > hook divide", "epoch", "close"]


def test_threads_are_apart(heard):
    def work():
        with span("commit", "write"):
            pass

    with span("epoch"):
        thread = threading.Thread(target=work, name="saver")
        thread.start()
        thread.join()
    assert labels(heard) == ["commit write", "epoch"]
    assert heard[0].thread_name == "saver"
    assert heard[0].thread != heard[1].thread


def test_what_had_begun_before_one_listens_is_not_heard(heard):
    late = []
    with span("epoch"):
        stop = listen(late.append)
        with span("wait"):
            pass
    stop()
    stop()
    with span("close"):
        pass
    assert labels(heard) == ["epoch > wait", "epoch", "close"]
    assert labels(late) == ["epoch > wait"]


def test_the_first_who_listens_hears_what_begins_then():
    found = []
    with span("epoch"):
        stop = listen(found.append)
        with span("wait"):
            pass
    stop()
    assert labels(found) == ["wait"]


def test_items_are_waited_for_within_spans_and_used_outside(heard):
    def source():
        with span("transfer"):
            pass
        yield 1
        raise OSError("gone")

    items = spans(source(), "data", "train")
    next(items)
    with span("dispatch"):
        pass
    with pytest.raises(OSError, match="gone"):
        next(items)
    assert labels(heard) == ["data train > transfer", "data train", "dispatch", "data train"]
    assert list(spans([], "data")) == []


def test_a_listener_that_fails_is_not_passed_over():
    def fail(one):
        raise OSError("no room")

    stop = listen(fail)
    try:
        with pytest.raises(OSError, match="no room"), span("epoch"):
            pass
    finally:
        stop()
    assert timing._here.path == ()


def test_a_run_tells_all_that_it_does(state, phase, heard, tmp_path):
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
        "epoch > event epoch > flush save_checkpoints/last > commit wait",
        "epoch > event epoch > hook save_checkpoints > commit copy",
        "event end",
        "close save_checkpoints/last > commit wait",
        "close log_metrics > writer JsonLines",
    } <= set(labels(heard))
    elsewhere = {one.thread_name: labels([one]) for one in heard if one.thread != heard[0].thread}
    assert elsewhere == {"entracte-save": ["commit write"], "log_metrics": ["hook log_metrics"]}
    found = labels(heard)
    assert [one.number for one in heard if one.path == (("epoch", ""),)] == [1, 2]
    assert found.count("compile train") == 1
    assert found.count("epoch > wait train") == 2


def test_data_that_is_read_ahead_is_on_a_thread_of_its_own(heard):
    assert Ahead(lambda number: number + 1)(1, then=2) == 2
    (read, *_) = heard
    assert labels([read]) == ["read"]
    assert read.thread_name.startswith("entracte-data")


def test_a_run_that_fails_ends_its_spans(state, phase, heard):
    def fail(state, metrics):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, phase, epochs=3, hooks=fail)
    assert labels(heard)[-3:] == ["epoch > event epoch > hook fail", "epoch > event epoch", "epoch"]
    assert timing._here.path == ()
