"""Heartbeats of workers: recorded while a worker works, deleted when it ends."""

from trainer.evaluators import WorkerRow, list_workers
from trainer.evaluators.liveness import (
    FORGET_SECONDS,
    LeaseKeeper,
    record_heartbeat,
    remove_worker,
)
from trainer.runs import requests


def test_a_heartbeat_is_updated_and_deleted(store):
    for doing, done in (("waiting", 0), ("evaluating\0", 1)):
        record_heartbeat(store, WorkerRow("ann", "here", 7, 0.0, doing, done))
    (row,) = list_workers(store)
    assert (row.name, row.host, row.pid, row.done) == ("ann", "here", 7, 1)
    assert row.doing == "evaluating\ufffd"
    assert abs(row.beat - store.connection.now()) < 60
    record_heartbeat(store, WorkerRow("bob", "here", 8, 0.0, "waiting", 0))
    remove_worker(store, "ann")
    assert [row.name for row in list_workers(store)] == ["bob"]


def test_workers_that_died_long_ago_are_deleted(store):
    record_heartbeat(store, WorkerRow("old", "here", 7, 0.0, "waiting", 0))
    store.connection.execute("UPDATE workers SET beat = beat - ?", (FORGET_SECONDS + 1,))
    remove_worker(store, "another")
    assert list_workers(store) == []


def test_a_lease_is_kept_and_progress_recorded(project, store, until):
    project.request(1)
    request = requests.claim_request(store, "me", ["digits"], lease=0.3)
    with LeaseKeeper(f"sqlite:///{project.folder}/store.sqlite", "me", lease=0.3) as keeper:
        with keeper.holding(request, "evaluating one"):
            until(lambda: [row.doing for row in list_workers(store)] == ["evaluating one"])
            (now,) = requests.list_requests(store)
            until(lambda: requests.list_requests(store)[0].lease > now.lease)
        keeper.count_answer()
        until(lambda: [(row.doing, row.done) for row in list_workers(store)] == [("waiting", 1)])
    assert list_workers(store) == []
