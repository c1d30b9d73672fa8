"""Signs of life: there while a worker works, gone when it ends."""

from trainer.evaluators import workers
from trainer.evaluators.lease import LeaseKeeper
from trainer.evaluators.liveness import FORGOTTEN, record_heartbeat, sign_off
from trainer.runs import requests


def test_a_sign_is_renewed_and_taken_back(store):
    for doing, done in (("waiting", 0), ("evaluating\0", 1)):
        record_heartbeat(store, "ann", host="here", pid=7, doing=doing, done=done)
    (row,) = workers(store)
    assert (row.name, row.host, row.pid, row.done) == ("ann", "here", 7, 1)
    assert row.doing == "evaluating\ufffd"
    assert abs(row.beat - store.connection.now()) < 60
    record_heartbeat(store, "bob", host="here", pid=8, doing="waiting", done=0)
    sign_off(store, "ann")
    assert [row.name for row in workers(store)] == ["bob"]


def test_those_that_died_long_ago_are_forgotten(store):
    record_heartbeat(store, "old", host="here", pid=7, doing="waiting", done=0)
    store.connection.execute("UPDATE workers SET beat = beat - ?", (FORGOTTEN + 1,))
    sign_off(store, "another")
    assert workers(store) == []


def test_a_pulse_keeps_the_lease_and_tells_what_is_done(project, store, until):
    project.ask(1)
    request = requests.claim(store, "me", ["digits"], lease=0.3)
    with LeaseKeeper(f"sqlite:///{project.folder}/store.sqlite", "me", lease=0.3) as pulse:
        with pulse.holding(request, "evaluating one"):
            until(lambda: [row.doing for row in workers(store)] == ["evaluating one"])
            (now,) = requests.list_requests(store)
            until(lambda: requests.list_requests(store)[0].lease > now.lease)
        pulse.answered()
        until(lambda: [(row.doing, row.done) for row in workers(store)] == [("waiting", 1)])
    assert workers(store) == []
