import jax
import pytest

from trainer.checkpoints import restoring


def test_one_process_agrees_with_itself():
    restoring.agree(3)


@pytest.mark.parametrize(("lead", "mine"), [(3, 2), (3, -1), (-1, 3)])
def test_processes_that_restored_different_commits_say_so(monkeypatch, lead, mine):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(restoring, "of_lead", lambda values: {"number": float(lead)})
    with pytest.raises(RuntimeError, match=f"restored commit {mine} and process 0 commit {lead}"):
        restoring.agree(mine)
    restoring.agree(lead)
