"""Averages of parameters over optimizer steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from hooks import testing
from trainer import losses
from trainer.supervised import step_averages

DECAY = 0.8


def averaging(linear, **settings):
    settings = {"average": DECAY, **settings}
    return trainer.supervised(linear, losses.classification, optax.adam(1e-2), **settings)


@pytest.fixture(scope="module")
def averaged(linear, digits):
    """The task that averages, its state and its phase, of 6 steps an epoch."""
    task = averaging(linear)
    state = task.init(jax.random.key(0), digits[0].example)
    return task, state, trainer.training(task.step, digits[0])


def worked(rows):
    """Give the bias-corrected mean of parameters `[steps, ...]`, in float64."""
    weights = DECAY ** np.arange(len(rows))[::-1]
    return np.tensordot(weights / weights.sum(), np.asarray(rows, np.float64), 1)


@pytest.mark.emitters
def test_the_average_is_over_steps_and_training_does_not_use_it(
    averaged, task, start, train, digits
):
    _, state, phase = averaged
    alone, seen = start, []
    step = jax.jit(task.step)
    for batch in [digits[0].example] * 4:
        alone, _ = step(alone, batch)
        seen.append(alone.params)
    with_average, own = state, jax.jit(averaged[0].step)
    for batch in [digits[0].example] * 4:
        with_average, _ = own(with_average, batch)
    chex.assert_trees_all_equal(with_average.params, alone.params)
    wanted = jax.tree.map(lambda *rows: worked(rows), *seen)
    found = with_average.carry["average"]
    chex.assert_trees_all_close(found["params"], wanted, atol=1e-6)
    assert int(found["updates"]) == 4
    trained, _ = trainer.fit(start, train, epochs=2)
    fitted, _ = trainer.fit(state, phase, epochs=2)
    chex.assert_trees_all_equal(fitted.params, trained.params)
    assert int(fitted.carry["average"]["updates"]) == int(fitted.step)
    chex.assert_trees_all_equal(state.carry["average"]["params"], state.params)  # not donated


def test_the_first_average_equals_the_parameters_bit_for_bit(averaged, digits):
    task, state, _ = averaged
    after, _ = jax.jit(task.step)(state, digits[0].example)
    chex.assert_trees_all_equal(after.carry["average"]["params"], after.params)


def test_hooks_measure_and_keep_the_average_by_its_name(averaged, digits):
    """The scores are those of the average, which `keep_best` puts back."""
    task, state, phase = averaged
    val = trainer.evaluation(task.measure, digits[1])
    chain = [
        hooks.evaluate(val, params="average"),
        hooks.keep_best("val/loss", params="average"),
    ]
    best, history = trainer.fit(state, phase, epochs=3, hooks=chain)
    at_end, _ = trainer.fit(state, phase, epochs=3)
    at_end = at_end.replace(params=at_end.carry["average"]["params"])
    assert trainer.evaluate(at_end, val)["val/loss"] == pytest.approx(history[-1]["val/loss"])
    scores = [epoch["val/loss"] for epoch in history]
    assert trainer.evaluate(best, val)["val/loss"] == pytest.approx(min(scores))


def test_law_5_the_average_resumes(averaged, tmp_path):
    _, state, phase = averaged
    whole, _ = trainer.fit(state, phase, epochs=2)
    for epochs in (1, 2):
        saving = hooks.save_checkpoints(tmp_path, max_cost=None)
        resumed, _ = trainer.fit(state, phase, epochs=epochs, hooks=saving)
    assert trainer.fingerprint(resumed) == trainer.fingerprint(whole)


def test_a_step_that_changes_nothing_does_not_count(linear):
    """Neither one whose examples weigh nothing, nor one whose gradients overflow."""
    rows = {
        "inputs": np.ones((4, 3), np.float32),
        "labels": np.zeros(4, np.int32),
        "weights": np.ones(4, np.float32),
    }
    for precision, still in (
        ("float32", {**rows, "weights": np.zeros(4, np.float32)}),
        ("float16", {**rows, "inputs": np.full((4, 3), 1e6, np.float32)}),
    ):
        task = averaging(linear, precision=precision)
        step = jax.jit(task.step)
        state, _ = step(task.init(jax.random.key(0), rows), rows)
        after, _ = step(state, still)
        assert int(after.step) == 2
        chex.assert_trees_all_equal(after.params, state.params)
        chex.assert_trees_all_equal(after.carry["average"], state.carry["average"])
        after, _ = step(after, rows)
        assert int(after.carry["average"]["updates"]) == 2


def test_parameters_in_lower_precision_are_averaged_in_float32():
    """In bfloat16 a step of 1e-3 of the way would be rounded off."""
    average = step_averages.init_average({"w": jnp.ones(2, jnp.bfloat16), "n": jnp.int32(3)})
    average = step_averages.update_average(
        average, {"w": jnp.ones(2, jnp.bfloat16), "n": 3}, 0.999, None
    )
    for _ in range(200):
        after = {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.int32(5)}
        average = step_averages.update_average(average, after, 0.999, None)
    assert average["params"]["w"].dtype == jnp.float32
    wanted = 0.999**200 * (1 - 0.999) / (1 - 0.999**201)
    assert float(average["params"]["w"][0]) == pytest.approx(wanted, rel=1e-3)
    assert int(average["params"]["n"]) == 5
    state = trainer.TrainState.create(
        params={"w": jnp.ones(2, jnp.bfloat16), "n": jnp.int32(0)},
        rng=jax.random.key(0),
        carry={"average": average},
    )
    chex.assert_trees_all_equal_dtypes(step_averages.get_average(state), state.params)


def test_members_of_a_population_have_their_own_averages(averaged, digits):
    task, _, phase = averaged
    states = [task.init(jax.random.key(seed), digits[0].example) for seed in (0, 1)]
    both = trainer.population(phase, 2)
    kept = hooks.each(hooks.keep_best("train/loss", params="average"))
    after, _ = trainer.fit(trainer.stack_states(states), both, epochs=1, hooks=kept)
    for number, state in enumerate(states):
        alone, _ = trainer.fit(state, phase, epochs=1)
        member = trainer.member(after, number)
        chex.assert_trees_all_close(member.carry["average"], alone.carry["average"], atol=1e-5)
        chex.assert_trees_all_close(member.params, alone.carry["average"]["params"], atol=1e-5)


def test_settings_that_exclude_each_other_are_errors(averaged, task, start, train, digits, linear):
    val = trainer.evaluation(task.measure, digits[1])
    for hook in (
        hooks.evaluate(val, params="average"),
        hooks.keep_best("train/loss", params="average"),
        hooks.recalibrate(trainer.recalibration(task, digits[0]), params="average"),
    ):
        with pytest.raises(
            ValueError, match=r"does not keep .*supervised\(\.\.\., average=0\.999\)"
        ):
            trainer.fit(start, train, epochs=1, hooks=hook)
    with pytest.raises(
        ValueError, match=r"the step of supervised\(\.\.\., average.* needs the ave"
    ):
        trainer.fit(start, averaged[2], epochs=1)
    for decay in (-0.1, 1.0, 2):
        with pytest.raises(ValueError, match=r"average must be a decay in \[0, 1\)"):
            averaging(linear, average=decay)
    with pytest.raises(ValueError, match="the name 'average' is that of the average over steps"):
        hooks.average_params(name="average")


def test_hooks_that_read_the_average_keep_the_laws(averaged, digits):
    task, state, _ = averaged
    val = trainer.evaluation(task.measure, digits[1])
    testing.check_hook(hooks.evaluate(val, params="average"), state, {})
    hook = hooks.keep_best("val/loss", params="average")
    testing.check_hook(hook, state, {"val/loss": 1.0})
