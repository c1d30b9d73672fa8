"""Phases: compiled once, checked before training, their position moved by reading."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import Phase, data


def test_law_8_a_phase_compiles_once_whatever_hooks_come_and_go(
    task, digits, counting_compilations
):
    state = task.init(jax.random.key(0), digits[0].example)
    phase = trainer.training(lambda *both: task.step(*both), digits[0])
    halve = jax.jit(lambda params: jax.tree.map(lambda w: w / 2, params))
    halve(state.params)

    def shrink(state, metrics):
        return state.replace(params=halve(state.params), hook_state=state.hook_state)

    def to_numpy(state, metrics):
        return state.replace(params=jax.tree.map(np.asarray, state.params))

    trainer.fit(state, phase, epochs=2)
    trainer.fit(state, phase, epochs=2, hooks=[shrink, to_numpy])
    with counting_compilations() as counts:
        trainer.fit(state, phase, epochs=2)
        trainer.fit(state, phase, epochs=3, hooks=[shrink])
        trainer.fit(state, phase, epochs=3, hooks=[to_numpy, shrink])
    assert counts == []
    assert len(phase._shared.compiled) == 1


def test_the_count_of_compilations_can_fail(state, counting_compilations):
    with counting_compilations() as counts:
        jax.jit(lambda x: x * 3.25)(jnp.ones(7))
    assert counts


def test_a_phase_without_a_source_receives_the_previous_output(state):
    def rollout(state, data):
        assert data is None
        return state, {"experience": jnp.arange(3.0)}, {"length": jnp.float32(3)}

    def update(state, data):
        return state, None, {"sum": data["experience"].sum()}

    program = [Phase("rollout", rollout), Phase("update", update)]
    _, history = trainer.fit(state, program, epochs=1)
    assert (history[0]["rollout/length"], history[0]["update/sum"]) == (3.0, 3.0)


def test_leaves_that_share_a_buffer_after_a_phase_can_be_donated_again(state):
    def share(state, data):
        same = state.params["w"] * 2
        return state.replace(carry=(same, same)), None, {}

    state = state.replace(carry=(jnp.zeros(2), jnp.zeros(2)))
    state, _ = trainer.fit(state, Phase("share", share), epochs=3)
    chex.assert_trees_all_close(state.carry, (state.params["w"] * 2,) * 2)


@pytest.mark.parametrize(
    ("run", "error", "said"),
    [
        (lambda s, d: s, TypeError, r"must return \(state, output, metrics\)"),
        (lambda s, d: (None, None, {}), TypeError, "TrainState first; got NoneType"),
        (
            lambda s, d: (s.replace(params={"w": s.params["w"]}), None, {}),
            ValueError,
            r"params/b: float32\[\] is missing",
        ),
        (
            lambda s, d: (s.replace(step=s.step + 1.0), None, {}),
            ValueError,
            r"step: int32\[\] became float32\[\]",
        ),
    ],
)
def test_a_phase_that_breaks_the_contract_is_named_before_training(state, run, error, said):
    with pytest.raises(error, match=said) as raised:
        trainer.fit(state, Phase("broken", run), epochs=1)
    assert "in checking phase 'broken'" in raised.value.__notes__
    assert "broken" in str(raised.value)


@pytest.mark.parametrize("name", ["", "train/a"])
def test_a_name_is_a_word(name):
    with pytest.raises(ValueError, match="a word without"):
        Phase(name, lambda state, data: (state, None, {}))


def _long(steps=3):
    batches = [{"inputs": np.full((2, 1), n, np.float32)} for n in range(7)]
    return data.Stream(batches, superbatch=2, steps_per_epoch=steps)


def _add(state, batch):
    params = {**state.params, "b": state.params["b"] + batch["inputs"].sum()}
    return state.replace(step=state.step + 1, params=params), {"first": batch["inputs"][0, 0]}


def test_the_steps_of_an_epoch_are_known_if_the_source_knows_them(task, digits, train, val, phase):
    assert train.steps_per_epoch == 6
    assert trainer.training(_add, _long(3)).steps_per_epoch == 3
    assert (
        trainer.training(_add, data.Stream([{"inputs": np.zeros((2, 1))}])).steps_per_epoch is None
    )
    assert (val.steps_per_epoch, phase.steps_per_epoch) == (None, None)


def test_a_position_is_added_once_and_only_where_one_is_needed(state, train):
    assert train.add_position(state) is state
    reading = trainer.training(_add, _long(), name="read")
    state = state.replace(carry={"scale": jnp.ones(())})
    prepared = reading.add_position(state)
    assert sorted(prepared.carry) == ["position/read", "scale"]
    assert prepared.carry["position/read"]["place"].tolist() == [0, 0]
    assert reading.add_position(prepared) is prepared


def test_reading_moves_the_position_and_leaves_the_earlier_state_alone(state):
    reading = trainer.training(_add, _long(5))
    before = reading.add_position(state)
    after, _, measured = reading.execute(before, None, donate=False)
    later, _, _ = reading.execute(after, None, donate=True)
    places = [s.carry["position/train"]["place"].tolist() for s in (before, later)]
    assert places == [[0, 0], [1, 3]]
    assert measured.read()[1]["train/first"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("meshed", [False, True])
def test_a_position_has_the_placement_of_the_state(state, meshed):
    if meshed:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state = jax.device_put(state, everywhere)
    where = state.step.sharding
    reading = trainer.training(lambda *both: _add(*both), _long(2))
    state = reading.add_position(state)
    for _ in range(3):
        assert state.carry["position/train"]["place"].sharding == where
        state, _, _ = reading.execute(state, None, donate=True)
    assert len(reading._shared.compiled) == 1


def test_without_a_position_the_remedy_is_named(state):
    reading = trainer.training(_add, _long())
    with pytest.raises(ValueError, match=r"'position/train'.*fit.*phase.add_position\(state\)"):
        reading.execute(state, None, donate=False)


@pytest.mark.parametrize("carry", [(jnp.zeros(2),), jnp.zeros(2)])
def test_a_carry_that_cannot_hold_a_position_is_refused(state, carry):
    with pytest.raises(TypeError, match="state.carry must be a dict.*'position/train'.*got"):
        trainer.fit(state.replace(carry=carry), trainer.training(_add, _long()), epochs=1)


def test_the_position_of_another_kind_of_stream_is_refused(state):
    other = {"position/train": {"place": jnp.zeros(2, jnp.int32), "iterator": jnp.zeros(8)}}
    with pytest.raises(ValueError, match=r"(?s)iterator: float32\[8\] is new.*from the carry"):
        trainer.training(_add, _long()).add_position(state.replace(carry=other))


def test_law_8_a_long_stream_compiles_once(state, counting_compilations):
    reading = trainer.training(lambda *both: _add(*both), _long(4))
    trainer.fit(state, reading, epochs=3)
    with counting_compilations() as counts:
        trainer.fit(state, reading, epochs=5)
    assert counts == []
    assert len(reading._shared.compiled) == 1
