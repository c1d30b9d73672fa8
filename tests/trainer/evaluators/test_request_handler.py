"""Results are written completely, once, and files only in the run's own folder."""

from hooks import observe
from trainer.evaluators import Suite, work
from trainer.evaluators.request_handler import EvaluationResult, write_result
from trainer.runs import Artifact, requests


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
