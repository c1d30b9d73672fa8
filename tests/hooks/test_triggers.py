"""Triggers of hooks."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer


def count(name="count"):
    return hooks.stateful(name, lambda state: 0, lambda count, state, metrics: (count + 1, state))


def at(state, epoch=0, step=0):
    return state.replace(epoch=jnp.int32(epoch), step=jnp.int32(step))


def fired(hook, state, metrics=None):
    """Whether a counting hook fired."""
    return hook(state, metrics or {}) is not state


@given(st.integers(1, 6), st.integers(0, 8), st.integers(1, 30))
def test_every_fires_in_each_nth_epoch_from_start_on(n, start, epoch):
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    hook = hooks.every(n, count(), start=start)
    assert fired(hook, at(state, epoch)) == (epoch % n == 0 and epoch >= max(start, 1))


def test_every_counts_the_running_epoch_at_a_phase(state):
    hook = hooks.on("rollout", hooks.every(3, count()))
    assert [fired(hook, at(state, epoch)) for epoch in range(4)] == [False, False, True, False]


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
@pytest.mark.parametrize("combinator", [hooks.every, hooks.every_steps])
def test_every_needs_a_whole_number(combinator, n):
    with pytest.raises((TypeError, ValueError), match="n must be a whole number of at least 1"):
        combinator(n, count())


def test_every_steps_fires_when_the_quotient_has_grown(state):
    hook, seen = hooks.every_steps(10, count()), []
    for step in (4, 9, 10, 15, 31, 39, 40):
        before, state = state, hook(at(state, step=step), {})
        seen.append(state.hook_state.get("count") != before.hook_state.get("count"))
    assert seen == [False, False, True, False, True, False, True]


def test_every_steps_starts_from_the_step_at_which_it_is_added(state, phase):
    state, _ = trainer.fit(state, phase, epochs=7)
    hook = hooks.every_steps(5, count())
    state, _ = trainer.fit(state, phase, epochs=9, hooks=hook)
    assert state.hook_state == {"count": 0, "every_steps/5/count": 1}
    state, _ = trainer.fit(state, phase, epochs=10, hooks=hook)
    assert state.hook_state == {"count": 1, "every_steps/5/count": 2}


def test_when_calls_its_predicate_with_state_and_metrics(state):
    hook = hooks.when(lambda state, metrics: metrics["loss"] < float(state.epoch), count())
    assert fired(hook, at(state, 2), {"loss": 1.0})
    assert not fired(hook, at(state, 1), {"loss": 1.0})


def test_when_calls_its_predicate_once_an_event(state):
    asked = []

    def ask(state, metrics):
        asked.append(dict(metrics))
        return float(state.params["b"]) == 0

    bump = hooks.stateful(
        "bump", lambda s: 0, lambda m, s, _: (m + 1, s.replace(params={**s.params, "b": 1.0}))
    )
    hook = hooks.when(ask, hooks.chain(bump, count()))
    after = hook(state, {})
    assert after.hook_state == {"bump": 1, "count": 1}
    assert len(asked) == 1
    assert hook(after, {}) is after
    assert len(asked) == 2


def test_when_calls_its_predicate_with_what_the_first_due_part_sees(state):
    asked = []

    @hooks.writes("val/loss")
    def score(state, metrics):
        return state.replace(scores={"val/loss": 0.5})

    def ask(state, metrics):
        asked.append(metrics["val/loss"])
        return True

    hooks.chain(score, hooks.when(ask, hooks.chain(hooks.reads("absent")(count()), count("x"))))(
        state, {}
    )
    assert asked == [0.5]


def test_once_fires_the_first_time_only_across_resumes(state, phase):
    hook = hooks.once(count())
    state, _ = trainer.fit(state, phase, epochs=2, hooks=hook)
    state, _ = trainer.fit(state, phase, epochs=4, hooks=hook)
    assert state.hook_state == {"count": 1, "once/count": True}


def test_once_waits_for_the_trigger_within(state, phase):
    state, _ = trainer.fit(state, phase, epochs=6, hooks=hooks.once(hooks.every(3, count())))
    assert state.hook_state["count"] == 1
    other, _ = trainer.fit(
        state.replace(hook_state={}, epoch=jnp.int32(0)),
        phase,
        epochs=2,
        hooks=hooks.once(hooks.every(3, count())),
    )
    assert other.hook_state == {"count": 0, "once/count": False}


def test_triggers_nest(state):
    hook = hooks.every(2, hooks.every(3, count()))
    assert [epoch for epoch in range(1, 13) if fired(hook, at(state, epoch))] == [6, 12]


@pytest.mark.parametrize(
    "trigger",
    [
        lambda hook: hooks.every(100, hook),
        lambda hook: hooks.when(lambda state, metrics: False, hook),
        lambda hook: hooks.every_steps(100, hook),
    ],
)
def test_triggers_let_start_end_and_error_parts_pass(state, trigger):
    composite = hooks.chain(hooks.on("start", count("a")), count("b"), hooks.on("end", count("c")))
    governed = trigger(composite)
    assert fired(lambda s, m: governed(s, m, "start"), state)
    assert not fired(governed, state)
    assert fired(lambda s, m: governed(s, m, "end"), state)


def test_on_moves_a_hook_to_an_event_once(state):
    assert hooks.on("rollout", count()).at == "rollout"
    with pytest.raises(
        ValueError, match="'count' runs at 'start' already and cannot move to 'end'"
    ):
        hooks.on("end", hooks.on("start", count()))
