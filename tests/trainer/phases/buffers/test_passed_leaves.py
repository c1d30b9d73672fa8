"""Leaves that a phase passes through are the very same arrays, never copied or donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data, fingerprint
from trainer.phases import dispatches
from trainer.phases.buffers import passed_leaves

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2)
ROWS = data.Arrays({"x": X}, batch_size=8)


def make_state(key):
    """Make a state with two arrays of 64 KB: a frozen one, and one that changes."""
    base = jax.random.normal(key, (128, 128))
    params = {"w": base[:2, :3], "large": base * 2}
    return trainer.TrainState.create(params=params, model_state={"base": base}, rng=key)


def compute_loss(params, model_state, x):
    frozen = x @ model_state["base"][:2, :3]
    found = jnp.sum(jnp.sin(frozen + x @ params["w"]) ** 2) + jnp.sum(params["large"] ** 2)
    return found, {**model_state}


def descend(state, batch):
    """Descend; the model state is an auxiliary result of a gradient, as a network's is."""
    gradient = jax.value_and_grad(compute_loss, has_aux=True)
    (loss, model_state), slopes = gradient(state.params, state.model_state, batch["x"])
    params = jax.tree.map(lambda w, slope: w - 0.01 * slope, state.params, slopes)
    after = state.replace(params=params, model_state=model_state, step=state.step + 1)
    return after, {"loss": loss}


def make_step():
    """Return a new step, which shares nothing that was compiled for another."""
    return lambda state, batch: descend(state, batch)


def write_by_hand():
    def run(state, arrays):
        state, metrics = jax.lax.scan(descend, state, {"x": arrays["x"].reshape(2, 8, 2)})
        return state, None, metrics

    return trainer.Phase("train", run, source=ROWS)


PROGRAMS = {
    "scan": lambda: trainer.training(make_step(), ROWS, executor="scan"),
    "step": lambda: trainer.training(make_step(), ROWS, executor="step"),
    "dispatches": lambda: trainer.training(make_step(), ROWS, executor="scan"),
    "repeated": lambda: trainer.repeated(trainer.training(make_step(), ROWS), 2),
    "hand-written": write_by_hand,
}


@pytest.fixture(scope="module")
def start():
    return make_state(jax.random.key(0))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_passes_on_the_array_of_the_caller_with_equal_bits(name, start, monkeypatch):
    if name == "dispatches":
        least = dispatches.Shortest(operations=0, steps=2)
        monkeypatch.setattr(dispatches, "SHORTEST", {"cpu": least})
    after, _ = trainer.fit(start, PROGRAMS[name](), epochs=2)
    assert after.model_state["base"] is start.model_state["base"]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start.replace(stop=None)))
    monkeypatch.setattr(passed_leaves, "LARGE", 2**40)
    copied, _ = trainer.fit(start, PROGRAMS[name](), epochs=2)
    assert copied.model_state["base"] is not start.model_state["base"]
    assert fingerprint(after) == fingerprint(copied)


@pytest.mark.parametrize("executor", ["scan", "step"])
def test_what_changes_is_donated_and_what_does_not_stays(executor):
    state = make_state(jax.random.key(1))
    phase = trainer.training(make_step(), ROWS, executor=executor)
    address = state.params["large"].unsafe_buffer_pointer()
    after, _, _ = phase.execute(state, None, donate=True)
    assert state.params["large"].is_deleted()
    assert after.params["large"].unsafe_buffer_pointer() == address
    assert after.model_state["base"] is state.model_state["base"]


def test_a_run_holds_a_frozen_array_once(start):
    seen = []

    def count(state, metrics):
        seen.append(sum(array.nbytes == 2**16 for array in jax.live_arrays()))
        return state

    before = sum(array.nbytes == 2**16 for array in jax.live_arrays())
    phase = trainer.training(make_step(), ROWS)
    for overlap in (False, True):
        trainer.fit(start, phase, epochs=3, hooks=[count], overlap=overlap)
    assert seen[:3] == [before + 1] * 3  # the one that changes, beside the caller's two
    assert max(seen[3:]) <= before + 3  # of three epochs, where nothing is donated


def test_an_array_that_a_hook_sets_counts_and_nothing_compiles_again(start):
    other = np.full((128, 128), 0.5, np.float32)

    def exchange(state, metrics):
        if int(state.epoch) != 1:
            return state
        return state.replace(model_state={"base": other})

    phase = trainer.training(make_step(), ROWS)
    after, _ = trainer.fit(start, phase, epochs=2, hooks=[exchange])
    (_,) = phase._shared.compiled
    first, _ = trainer.fit(start, phase, epochs=1)
    wanted, _ = trainer.fit(first.replace(model_state={"base": other}), phase, epochs=2)
    assert fingerprint(after) == fingerprint(wanted)
    other[:] = 7
    np.testing.assert_array_equal(after.model_state["base"], 0.5)


def test_an_array_that_a_hook_copies_into_the_parameters_stays_the_callers(start):
    def reset(state, metrics):
        return state.replace(params={**state.params, "large": state.model_state["base"]})

    after, _ = trainer.fit(start, trainer.training(make_step(), ROWS), epochs=2, hooks=[reset])
    assert after.model_state["base"] is start.model_state["base"]
    np.testing.assert_array_equal(after.params["large"], start.model_state["base"])


def test_a_phase_that_changes_an_array_gets_a_copy(start):
    def halve(state, arrays):
        return state.replace(model_state={"base": state.model_state["base"] / 2}), None, {}

    program = [trainer.training(make_step(), ROWS), trainer.Phase("halve", halve)]
    after, _ = trainer.fit(start, program, epochs=2)
    np.testing.assert_array_equal(after.model_state["base"], start.model_state["base"] / 4)


def test_members_share_the_law():
    keys = jax.random.split(jax.random.key(0), 2)
    start = trainer.population_of(make_state, keys)
    phase = trainer.population(trainer.training(make_step(), ROWS), 2)
    after, _ = trainer.fit(start, phase, epochs=1)
    assert after.model_state["base"] is start.model_state["base"]
    alone, _ = trainer.fit(make_state(keys[1]), trainer.training(make_step(), ROWS), epochs=1)
    np.testing.assert_allclose(after.params["large"][1], alone.params["large"], rtol=1e-6)


@pytest.fixture(scope="module")
def alone(start):
    after, _ = trainer.fit(start, trainer.training(make_step(), ROWS), epochs=1)
    return after


FSDP = [("base|large", trainer.fsdp())]


@pytest.mark.parametrize(("name", "rules"), [("scan", FSDP), ("step", ()), ("hand-written", FSDP)])
def test_on_a_mesh_it_stays_where_it_lies(name, rules, start, alone):
    spread = trainer.spread(start, rules=rules)
    after, _ = trainer.fit(spread, PROGRAMS[name](), epochs=1)
    assert after.model_state["base"] is spread.model_state["base"]
    np.testing.assert_allclose(after.params["large"], alone.params["large"], rtol=1e-5)
