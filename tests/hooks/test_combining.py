"""Chains of hooks."""

import chex
import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer


def scale(factor):
    def scale(state, metrics):
        return state.replace(params=jax.tree.map(lambda w: w * factor, state.params))

    return scale


def count(name="count"):
    return hooks.stateful(name, lambda state: 0, lambda count, state, metrics: (count + 1, state))


def at(state, epoch=0, step=0):
    return state.replace(epoch=jnp.int32(epoch), step=jnp.int32(step))


def test_a_chain_runs_in_order(state):
    after = hooks.chain(scale(0.5), scale(4.0))(state, {})
    chex.assert_trees_all_close(after.params["w"], jnp.array([2.0, -4.0]))
    chex.assert_trees_all_equal_structs(state, after)


LEAVES = st.sampled_from(
    [
        scale(2.0),
        scale(-0.5),
        count("a"),
        hooks.every(2, scale(3.0)),
        hooks.observe(count("b")),
        hooks.reads("loss")(scale(5.0)),
        hooks.on("start", scale(7.0)),
    ]
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3).map(lambda h: hooks.chain(*h))
)


@given(TREES, TREES, TREES)
def test_law_2_a_chain_is_associative(a, b, c):
    left = hooks.chain(hooks.chain(a, b), c)
    assert left == hooks.chain(a, hooks.chain(b, c)) == hooks.chain(a, b, c)


@given(TREES)
def test_law_2_the_empty_chain_is_the_identity(a):
    assert hooks.chain(hooks.chain(), a) == hooks.chain(a, hooks.chain()) == hooks.chain(a)


@given(TREES, st.integers(0, 4))
def test_law_2_a_chain_of_chains_does_what_the_chain_does(a, epoch):
    state = trainer.TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    state = at(state, epoch)
    once, twice = hooks.chain(a), hooks.chain(hooks.chain(hooks.chain(a)))
    assert trainer.fingerprint(once(state, {})) == trainer.fingerprint(twice(state, {}))


def test_law_2_the_empty_chain_returns_the_same_state_object(state):
    assert hooks.chain()(state, {}) is state


@given(TREES)
def test_law_2_every_epoch_is_the_hook_itself(hook):
    assert hooks.every(1, hook) is hook


def test_law_2_a_hook_that_does_not_fire_returns_the_same_state_object(state):
    state = at(state, 1, 1)
    for hook in (
        hooks.every(2, scale(2)),
        hooks.every_steps(2, scale(2)),
        hooks.when(lambda state, metrics: False, scale(2)),
        hooks.reads("absent")(scale(2)),
    ):
        assert hook(state, {}) is state
        assert hooks.chain(hook, hook)(state, {}) is state


def test_a_chain_called_directly_keeps_stages_and_scores(state):
    seen = []

    @hooks.observe
    def look(state, metrics):
        seen.append(dict(metrics))
        return state

    @hooks.writes("b")
    def score(state, metrics):
        return state.replace(scores={**state.scores, "b": metrics["a"] + 1})

    after = hooks.chain(look, score)(state, {"a": 1.0})
    assert seen == [{"a": 1.0, "b": 2.0}]
    assert after.scores == {"b": 2.0}


def test_a_chain_prints_as_a_table_in_the_order_of_execution(state, phase):
    def log(state, metrics):
        return state

    chain = hooks.chain(
        hooks.on("end", log),
        hooks.observe(log),
        hooks.stop_early("val/loss", patience=2),
        hooks.writes("gap")(scale(1)),
        hooks.on("rollout", count()),
    )
    assert str(chain) == repr(chain)
    assert str(chain).splitlines() == [
        "event    stage    hook                 reads     writes",
        "rollout  control  count",
        "epoch    control  stop_early/val/loss  val/loss",
        "epoch    control  scale                          gap",
        "epoch    observe  log",
        "end      control  log",
    ]
