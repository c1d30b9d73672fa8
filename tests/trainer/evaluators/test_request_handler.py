"""What is written of an answer, and when."""

from hooks import observe
from trainer.evaluators import Suite, work
from trainer.evaluators.request_handler import EvaluationResult, write_result
from trainer.runs import Artifact, requests


def claimed(store, worker):
    return requests.claim(store, worker, ["digits"], lease=60)


def test_scores_and_artifacts_are_written_together_or_not_at_all(project, store):
    project.ask(1)
    late = claimed(store, "late")
    store.connection.execute("UPDATE requests SET lease = 0")
    now = claimed(store, "now")
    answer = EvaluationResult({"val/loss": 0.5}, [Artifact("/a.gif", "replay", 1, 7, 5)])
    assert not write_result(store, late, answer)
    assert requests.list_results(store, "one") == {}
    assert store.artifacts("one") == []
    assert write_result(store, now, answer)
    assert requests.list_results(store, "one") == {("digits", 1): {"val/loss": 0.5}}
    assert len(store.artifacts("one")) == 1


def test_to_settle_again_since_no_confirmation_came_is_no_loss(project, store):
    project.ask(1)
    request = claimed(store, "me")
    assert write_result(store, request, EvaluationResult({"val/loss": 0.5}, ()))
    assert write_result(store, request, EvaluationResult({"val/loss": 0.5}, ()))
    assert not write_result(
        store, request._replace(worker="another"), EvaluationResult({"val/loss": 0.25}, ())
    )
    assert requests.list_results(store, "one") == {("digits", 1): {"val/loss": 0.5}}


def test_hooks_of_a_suite_write_through_no_link_that_a_store_leads_to(
    project, store, start, val, tmp_path
):
    wrote = []

    def look(state, metrics):
        wrote.append(metrics)
        return state

    project.ask(1, 2)
    (tmp_path / "home").mkdir()
    (project.run / "evaluations").symlink_to(tmp_path / "home")
    suite = Suite("digits", start, val, hooks=lambda folder: observe(look))
    assert work(project.folder, suite, idle=0).failed == 2
    assert (wrote, list((tmp_path / "home").iterdir())) == ([], [])
    assert "it leads through a link" in requests.list_requests(store, "one")[0].error
    (project.run / "evaluations").unlink()
    assert work(project.folder, suite, idle=0, again=True).done == 2
    assert len(wrote) == 2
