"""Workers are killed one after another; no request is lost or answered twice."""

import _evaluators
import pytest


@pytest.mark.soak
def test_three_workers_of_which_one_is_killed_every_second(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    survived = _evaluators.killing(tmp_path, requested=50, workers=3, every=1.0, slow=0.3, seed=0)
    print(survived)
    assert survived.requests == survived.results == survived.right == 50
    assert survived.doubled == survived.lost == 0
    assert survived.kills >= 5
