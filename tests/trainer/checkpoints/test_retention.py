import math

from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoints.retention import Retention, rank_by_score, select_retained

scores = st.dictionaries(st.integers(0, 30), st.none() | st.floats())


@given(scores, st.sampled_from(["min", "max"]))
def test_the_best_is_no_worse_than_any_and_never_nan(scores, mode):
    order = rank_by_score(scores, mode)
    known = [score for score in scores.values() if score is not None and not math.isnan(score)]
    assert sorted(scores[n] for n in order) == sorted(known)
    if known:
        assert scores[order[0]] == (min if mode == "min" else max)(known)


@given(scores, st.integers(1, 4), st.integers(1, 3), st.none() | st.integers(1, 5))
def test_newest_best_and_every_nth_are_always_retained(scores, keep, keep_best, every):
    kept = select_retained(scores, Retention(keep, keep_best, every, mode="min"))
    wanted = set(sorted(scores)[-keep:]) | set(rank_by_score(scores, "min")[:keep_best])
    if every:
        wanted |= {n for n in scores if n % every == 0}
    assert kept == wanted
