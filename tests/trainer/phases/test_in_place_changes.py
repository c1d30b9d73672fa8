"""A hook or phase that changes its arguments in place is named at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.testing import check_hook
from trainer import TrainState
from trainer.phases.in_place_changes import MutationGuard


@pytest.fixture
def nested():
    """A state with containers of every kind, and hook state."""
    return TrainState.create(
        params={"head": {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 2))}},
        opt_state=({"count": jnp.int32(0)}, [jnp.ones(2)]),
        model_state={"mean": jnp.zeros(2)},
        carry={"x": jnp.ones(2)},
        rng=jax.random.key(0),
    )


def program():
    """A phase with an output, and one that receives it."""

    def play(state, data):
        return state, {"rewards": jnp.ones(3)}, {"return": jnp.ones(3)}

    def update(state, rollout):
        return state.replace(step=state.step + 1), None, {"loss": rollout["rewards"].mean()}

    return [trainer.Phase("rollout", play), trainer.Phase("update", update)]


PROGRAM = program()  # compiled once


def change_bias(state, metrics):
    state.params["head"]["bias"] = jnp.ones(2)
    return state


def add_to_carry(state, metrics):
    state.carry["y"] = 1
    return state


def drop_from_model(state, metrics):
    del state.model_state["mean"]
    return state


def count_in_optimizer(state, metrics):
    state.opt_state[0]["count"] += 1
    return state


def append_to_optimizer(state, metrics):
    state.opt_state[1].append(jnp.ones(2))
    return state


def score(state, metrics):
    state.scores["x"] = 1.0
    return state


def score_and_replace(state, metrics):
    state.scores["x"] = 1.0
    return state.replace(scores=state.scores, stop=False)


def remember(state, metrics):
    state.hook_state["kept"]["calls"] = 5
    return state


def forget(state, metrics):
    state.hook_state.clear()
    return state


CHANGES = {
    change_bias: "params/head/bias: float32[2] was replaced",
    add_to_carry: "carry/y: int is new",
    drop_from_model: "model_state/mean: float32[2] is missing",
    count_in_optimizer: "opt_state/0/count: int32[] was replaced",
    append_to_optimizer: "opt_state/1/1: float32[2] is new",
    score: "scores/x: float is new",
    score_and_replace: "scores/x: float is new",
    remember: "hook_state/kept/calls: int was replaced",
    forget: "hook_state/kept/calls: int is missing",
}


def keeping():
    return hooks.stateful("kept", lambda state: {"calls": 0}, lambda m, s, _: (m, s))


def refused(name, line):
    message = f"{name} changed in place the arguments that it may only read:\n  {line}"
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize("declare", [lambda hook: hook, hooks.observe], ids=["control", "observe"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_hook_that_changes_the_state_in_place_is_named_by_fit(nested, change, declare):
    with refused(f"hook {change.__name__!r}", CHANGES[change]) as raised:
        trainer.fit(nested, PROGRAM, epochs=2, hooks=[keeping(), declare(change)])
    assert raised.value.__notes__ == [f"in hook {change.__name__!r} at 'epoch' of epoch 1"]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_hook_that_changes_the_state_in_place_is_named_by_check_hook(nested, change):
    with pytest.raises(AssertionError, match=re.escape(CHANGES[change])):
        check_hook([keeping(), change], nested, {})


def test_the_output_for_the_next_phase_is_checked_too(nested):
    def spoil(state, metrics):
        metrics.output["rewards"] = jnp.zeros(3)
        return state

    with refused("hook 'spoil'", "metrics.output/rewards: float32[3] was replaced"):
        trainer.fit(nested, PROGRAM, epochs=1, hooks=hooks.on("rollout", hooks.observe(spoil)))


def halve_rewards(state, metrics):
    metrics.steps["rollout/return"][:] /= 2
    return state


def drop_trace(state, metrics):
    del metrics.steps["rollout/return"]
    return state


def write_metric(state, metrics):
    metrics["x"] = 1.0
    return state


def write_hook_state(state, metrics):
    state.hook_state["window"][0] = 1.0
    return state


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (halve_rewards, ValueError, "read-only: copy first"),
        (write_hook_state, ValueError, "read-only: copy first"),
        (drop_trace, TypeError, "mappingproxy"),
        (write_metric, TypeError, "metrics are frozen; .*return state.replace.scores="),
    ],
)
def test_metrics_and_arrays_are_read_only(nested, change, error, said):
    window = hooks.stateful("window", lambda state: np.zeros(3), lambda m, s, _: (m + 1, s))
    with pytest.raises(error) as raised:
        trainer.fit(nested, PROGRAM, epochs=1, hooks=[window, change])
    told = "\n".join([str(raised.value), *raised.value.__notes__])
    assert re.search(said, told)
    assert f"in hook {change.__name__!r} at 'epoch' of epoch 1" in told


def test_a_hook_that_writes_to_its_own_state_in_place_is_named(nested):
    def update(memory, state, metrics):
        memory["calls"] += 1
        return memory, state

    hook = hooks.stateful("count", lambda state: {"calls": 0}, update)
    with refused("hook 'count'", "hook_state/count/calls: int was replaced"):
        trainer.fit(nested, PROGRAM, epochs=1, hooks=hook)


def test_interrupting_and_guarded_hooks_are_checked_too(nested):
    def interrupt(state, metrics):
        score(state, metrics)
        raise trainer.Interrupt("enough")

    def fail(state, metrics):
        score(state, metrics)
        raise OSError("gone")

    for hook, name in ((interrupt, "interrupt"), (hooks.guard(fail), "fail")):
        with refused(f"hook {name!r}", "scores/x"):
            trainer.fit(nested, PROGRAM, epochs=1, hooks=hook)


def test_a_condition_is_checked_too(nested):
    def ask(state, metrics):
        state.scores["x"] = 1.0
        return False

    with refused("a condition of hook 'nothing'", "scores/x"):
        trainer.fit(nested, PROGRAM, epochs=1, hooks=hooks.when(ask, nothing))


def nothing(state, metrics):
    return state


def test_a_dry_run_names_it_before_the_run(nested):
    with pytest.raises(ValueError, match="'change_bias' changed in place") as raised:
        trainer.fit(nested, PROGRAM, epochs=1, hooks=change_bias, dry_run=True)
    assert "nothing was trained or recorded" in raised.value.__notes__[-1]


@pytest.mark.parametrize("change", [change_bias, score, forget], ids=lambda c: c.__name__)
def test_a_background_observer_is_named_and_changes_nothing(nested, change):
    with pytest.raises(ValueError, match=f"background observer {change.__name__!r} changed in"):
        trainer.fit(
            nested,
            PROGRAM,
            epochs=1,
            hooks=[keeping(), hooks.background(hooks.observe(change))],
        )


def test_values_of_members_are_read_only():
    value = trainer.Members([1.0, 2.0], live=[True, True])
    for array in (value.values, value.live, value.present):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_hook_of_each_member_is_named(nested):
    members = trainer.stack_states([nested, nested])
    live = {**members.carry, "live": jnp.ones(2, bool)}
    with pytest.raises(ValueError, match="hook 'change_bias' changed in place") as raised:
        hooks.each(change_bias)(members.replace(carry=live), {})
    assert raised.value.__notes__ == ["for member 0 of the population"]


def test_a_phase_that_grows_the_state_in_place_is_named(nested):
    def grow(state, data):
        state.carry["y"] = state.step
        return state, None, {}

    with refused("phase 'grow'", "carry/y: int32[] is new"):
        trainer.fit(nested, trainer.Phase("grow", grow), epochs=1)


def test_a_hook_is_distinguished_from_the_one_before_it(nested):
    def replace(state, metrics):
        return state.replace(carry={"x": jnp.zeros(2)})

    with refused("hook 'add_to_carry'", "carry/y: int is new"):
        trainer.fit(nested, PROGRAM, epochs=1, hooks=[replace, add_to_carry])


def test_leaves_of_any_kind_are_compared_by_identity(nested):
    for leaf in (jnp.ones((3, 3)), jnp.ones(2), "text", np.ones(2)):
        shadow, state = MutationGuard(nested), nested
        state.params["head"]["bias"], before = leaf, state.params["head"]["bias"]
        assert [line.partition(":")[0] for line in shadow.list_changes()] == ["params/head/bias"]
        state.params["head"]["bias"] = before
        assert shadow.list_changes() == []
