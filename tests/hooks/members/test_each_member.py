"""Hooks for each member: as if it trained alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import Members, Metrics, TrainState
from trainer.state import strip_host_fields


@pytest.fixture
def three():
    """A population of three, with an optimizer whose rate can be set."""

    def init(key):
        params = {"w": jax.random.normal(key, (2,))}
        opt_state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1).init(params)
        return TrainState.create(params=params, opt_state=opt_state, rng=key)

    return trainer.population_of(init, jax.random.split(jax.random.key(0), 3))


def _loss(*values, live=(True, True, True), present=None):
    return {"train/loss": Members(values, live, present)}


def test_a_hook_sees_its_member_alone(three):
    seen = []

    def look(state, metrics):
        seen.append((state.params["w"].tolist(), metrics["train/loss"], state.step.shape))
        return state

    after = hooks.each(look)(three, _loss(1.0, 2.0, 3.0))
    assert after is three
    assert [row[0] for row in seen] == three.params["w"].tolist()
    assert [row[1:] for row in seen] == [(1.0, ()), (2.0, ()), (3.0, ())]


def test_changes_are_written_back_and_nothing_else(three):
    def halve(state, metrics):
        if metrics["train/loss"] < 2:
            return state
        rate = optax.tree.get(state.opt_state, "learning_rate")
        return state.replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate / 2))

    after = hooks.each(halve)(three, _loss(1.0, 2.0, 3.0))
    rates = optax.tree.get(after.opt_state, "learning_rate")
    chex.assert_trees_all_close(rates, jnp.array([0.1, 0.05, 0.05]))
    chex.assert_trees_all_equal(after.params, three.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        strip_host_fields(after), strip_host_fields(three)
    )


def test_a_stop_ends_the_member_and_the_last_one_the_run(three):
    hook = hooks.each(hooks.stop_at_return(10.0, metric="train/loss"))
    state = hook(three, _loss(10.0, 3.0, 5.0))
    assert (state.carry["live"].tolist(), state.stop) == ([False, True, True], False)
    live = state.carry["live"].tolist()
    state = hook(state, _loss(0.0, 11.0, 12.0, live=live))
    assert (state.carry["live"].tolist(), state.stop) == ([False] * 3, True)


def test_hook_states_are_kept_by_member(three):
    hook = hooks.each(hooks.stop_early("train/loss", patience=3))
    state = hook(hook(three, _loss(1.0, 2.0, 3.0)), _loss(0.5, 4.0, 2.5))
    kept = state.hook_state["each/stop_early/train/loss"]
    assert [(m.best, m.since) for m in kept] == [(0.5, 0), (2.0, 1), (2.5, 0)]


def test_a_metric_that_a_member_does_not_have_is_missing(three):
    called = []

    @hooks.reads("train/loss")
    def look(state, metrics):
        called.append(metrics["train/loss"])
        return state

    hooks.each(look)(three, _loss(1.0, 2.0, 3.0, present=[True, False, True]))
    assert called == [1.0, 3.0]


def test_scores_are_of_members(three):
    @hooks.writes("twice")
    def double(state, metrics):
        return state.replace(scores={**state.scores, "twice": 2 * metrics["train/loss"]})

    after = hooks.each(double)(three, _loss(1.0, 2.0, 3.0))
    assert after.scores["twice"].values.tolist() == [2.0, 4.0, 6.0]
    assert after.scores["twice"] == 4.0


def test_triggers_are_evaluated_for_each_member(three):
    called = []

    def note(state, metrics):
        called.append(metrics["train/loss"])
        return state

    hook = hooks.each(hooks.when(lambda state, metrics: metrics["train/loss"] > 1.5, note))
    hook(three, _loss(1.0, 2.0, 3.0))
    assert called == [2.0, 3.0]


def test_parts_of_a_chain_keep_their_events(three):
    def note(state, metrics):
        return state

    parts = hooks.each(hooks.chain(hooks.on("train", note), hooks.keep_best("train/loss"))).parts
    assert [(part.at, part.stage) for part in parts] == [
        ("train", "control"),
        ("epoch", "control"),
        ("end", "control"),
    ]


def test_the_best_parameters_of_each_are_restored(three):
    hook = hooks.each(hooks.keep_best("train/loss"))
    state = hook(three, Metrics(_loss(1.0, 1.0, 1.0)))
    moved = state.replace(params={"w": state.params["w"] + 1})
    state = hook(moved, Metrics(_loss(0.5, 2.0, 0.5)))
    later = state.replace(params={"w": state.params["w"] * 0})
    put = hook(later, Metrics(), event="end").params["w"]
    expected = np.where(np.array([[True], [False], [True]]), moved.params["w"], three.params["w"])
    chex.assert_trees_all_close(put, expected)


def test_hooks_for_the_whole_population_are_refused(three, tmp_path, phase):
    with pytest.raises(ValueError, match=r"without each\(...\)"):
        hooks.each(hooks.save_checkpoints(tmp_path))
    fixed = trainer.Phase("val", lambda state, data: (state, None, {}), updates_state=False)
    with pytest.raises(ValueError, match="measures something itself"):
        hooks.each(hooks.evaluate(fixed))


def test_mistakes_name_the_member(three):
    def wrong(state, metrics):
        return state.replace(params={"w": state.params["w"][:1]})

    with pytest.raises(ValueError, match=r"(?s)must keep the structure.*member 0"):
        hooks.each(wrong)(three, {})

    def fail(state, metrics):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError) as failure:
        hooks.each(fail)(three, {})
    assert "for member 0 of the population" in failure.value.__notes__
    alone = trainer.member(three, 0)
    with pytest.raises(ValueError, match="needs the state of a population"):
        hooks.each(fail)(alone, {})


def test_members_on_eight_devices_are_seen_and_changed_as_on_one():
    def init(key):
        return TrainState.create(params={"w": jax.random.normal(key, (3,))}, rng=key)

    def change(state, metrics):
        if metrics["train/loss"] < 4:
            return state
        key = jax.random.fold_in(state.rng, 1)
        return state.replace(params={"w": state.params["w"] * 2}, rng=key, stop=True)

    seen = []

    def look(state, metrics):
        seen.append(state.params["w"].tolist())
        return state

    alone = trainer.population_of(init, jax.random.split(jax.random.key(0), 16))
    loss = {"train/loss": Members(np.arange(16.0), live=[True] * 16)}
    hook = hooks.each(hooks.chain(hooks.rekeys(change), hooks.observe(look)))
    split = trainer.spread(alone)
    assert len(split.params["w"].sharding.device_set) == 8
    after = hook(split, loss)
    assert seen == np.asarray(after.params["w"]).tolist()
    chex.assert_trees_all_equal(jax.device_get(after), jax.device_get(hook(alone, loss)))
    assert after.params["w"].sharding == split.params["w"].sharding
