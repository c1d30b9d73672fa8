"""A request gets exactly the checkpoint that it names; results are written completely, once."""

import shutil

import chex
import jax.numpy as jnp
import pytest

from hooks import observe
from trainer import Checkpoints
from trainer.evaluators import Suite, work
from trainer.evaluators.request_handler import (
    EvaluationResult,
    UnanswerableRequest,
    restore_requested,
    write_result,
)
from trainer.runs import Artifact, requests
from trainer.runs.rows import Request
from trainer.runs.run_directory import describe_checkpoint


def claim(store, worker):
    return requests.claim_request(store, worker, ["digits"], lease=60)


def test_scores_and_artifacts_are_written_together_or_not_at_all(project, store):
    project.request(1)
    late = claim(store, "late")
    store.connection.execute("UPDATE requests SET lease = 0")
    now = claim(store, "now")
    result = EvaluationResult({"val/loss": 0.5}, [Artifact("/a.gif", "replay", 1, 7, 5)])
    assert not write_result(store, late, result)
    assert requests.list_results(store, "one") == {}
    assert store.artifacts("one") == []
    assert write_result(store, now, result)
    assert requests.list_results(store, "one") == {("digits", 1): {"val/loss": 0.5}}
    assert len(store.artifacts("one")) == 1


def test_a_result_may_be_written_again_after_a_lost_confirmation(project, store):
    project.request(1)
    request = claim(store, "me")
    assert write_result(store, request, EvaluationResult({"val/loss": 0.5}, ()))
    assert write_result(store, request, EvaluationResult({"val/loss": 0.5}, ()))
    assert not write_result(
        store, request._replace(worker="another"), EvaluationResult({"val/loss": 0.25}, ())
    )
    assert requests.list_results(store, "one") == {("digits", 1): {"val/loss": 0.5}}


def test_hooks_of_a_suite_never_write_through_a_link(project, store, start, val, tmp_path):
    wrote = []

    def look(state, metrics):
        wrote.append(metrics)
        return state

    project.request(1, 2)
    (tmp_path / "home").mkdir()
    (project.run / "evaluations").symlink_to(tmp_path / "home")
    suite = Suite("digits", start, val, hooks=lambda folder: observe(look))
    assert work(project.folder, suite, idle=0).failed == 2
    assert (wrote, list((tmp_path / "home").iterdir())) == ([], [])
    assert "it leads through a link" in requests.list_requests(store, "one")[0].error
    (project.run / "evaluations").unlink()
    assert work(project.folder, suite, idle=0, again=True).done == 2
    assert len(wrote) == 2


def request_of(project, epoch):
    checksum = describe_checkpoint(project.run, epoch).checksum
    return Request("one", epoch, "digits", checksum, "claimed", 0.0, 1, "me", 0.0, None, "")


def restore(project, suite, request, present=True):
    return restore_requested(suite, request, project.run, present=present)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_requested_checkpoint_is_restored_and_no_file_changes(project, suite):
    before = files(project.run)
    state = restore(project, suite, request_of(project, 2))
    want = project.states[2]
    chex.assert_trees_all_equal(state.params, want.params)
    assert (int(state.epoch), int(state.step)) == (2, 14)
    assert state.key("val") == want.key("val")
    assert files(project.run) == before


def test_a_suite_that_does_not_fit_lists_what_differs(project, start, val):
    params = {"w": jnp.zeros((64, 5)), "bias": jnp.zeros(10)}
    suite = Suite("digits", start.replace(params=params, model_state={"mean": jnp.zeros(2)}), val)
    with pytest.raises(UnanswerableRequest) as failed:
        restore(project, suite, request_of(project, 1))
    message = str(failed.value)
    assert message.startswith("suite 'digits' does not fit: ")
    for line in (
        "params/w: saved float32[64, 10], wanted float32[64, 5]",
        "params/b: saved float32[10], wanted nothing",
        "params/bias: saved nothing, wanted float32[10]",
        "model_state/mean: saved nothing, wanted float32[2]",
    ):
        assert line in message


@pytest.mark.parametrize("where", ["checkpoint", "template"])
def test_statistics_that_only_one_side_has_do_not_fit(project, suite, where, start, val):
    statistics = {"normalization": {"observations": jnp.zeros(2)}}
    if where == "checkpoint":
        with Checkpoints(project.run, keep=5) as checkpoints:
            checkpoints.save(start.replace(epoch=jnp.int32(4), carry=statistics))
        request = request_of(project, 4)
    else:
        suite = Suite("digits", start.replace(carry=statistics), val)
        request = request_of(project, 3)
    with pytest.raises(UnanswerableRequest, match="carry/normalization/observations: saved"):
        restore(project, suite, request)


def test_a_damaged_checkpoint(project, suite):
    request = request_of(project, 1)
    (part,) = (project.run / "checkpoints" / "1" / "arrays").glob("process_0")
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    with pytest.raises(UnanswerableRequest, match="1 in .*: checksums differ at"):
        restore(project, suite, request)


def test_a_replaced_checkpoint(project, suite):
    request = request_of(project, 1)
    shutil.rmtree(project.run / "checkpoints" / "1")
    with Checkpoints(project.run, keep=5) as checkpoints:
        checkpoints.save(project.states[3].replace(epoch=jnp.int32(1)))
    with pytest.raises(
        UnanswerableRequest, match="not the one that was requested.* request its evaluation again"
    ):
        restore(project, suite, request)


def test_a_removed_checkpoint(project, suite):
    request = request_of(project, 1)
    shutil.rmtree(project.run / "checkpoints" / "1")
    with pytest.raises(UnanswerableRequest, match="was removed before it was evaluated: keep more"):
        restore(project, suite, request, present=False)
    with pytest.raises(FileNotFoundError, match="as this machine sees it"):
        restore(project, suite, request, present=True)
