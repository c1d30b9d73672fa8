"""Phases that compute the same share compiled functions, which keep no data."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data
from trainer.phases.compilation import ATTRIBUTE, KEPT


def descend(state, batch):
    """A step of least squares on one number."""
    error = state.params["w"] - batch["inputs"].mean()
    params = {**state.params, "w": state.params["w"] - 0.1 * error}
    return state.replace(step=state.step + 1, params=params), {"loss": (error**2).mean()}


def distance(state, batch):
    return {"loss": (state.params["w"].mean() - batch["inputs"]) ** 2}


def source_of(seed, size=12, batch_size=4, **settings):
    numbers = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return data.Arrays({"inputs": numbers}, batch_size, **settings)


@pytest.fixture
def step():
    """A new step for each test, which shares nothing with others."""
    return lambda state, batch: descend(state, batch)


@pytest.fixture
def measure():
    return lambda state, batch: distance(state, batch)


@pytest.mark.parametrize("executor", ["scan", "step"])
def test_law_8_folds_of_the_same_shapes_compile_once(
    state, step, measure, executor, counting_compilations
):
    def fold(seed):
        train = trainer.training(step, source_of(seed), executor=executor)
        val = trainer.evaluation(measure, source_of(seed + 10, size=5))
        after, _ = trainer.fit(state, train, epochs=2)
        return trainer.evaluate(after, val)["val/loss"]

    first = fold(0)
    with counting_compilations() as counts:
        others = [fold(seed) for seed in (1, 2)]
    assert counts == []
    assert len({first, *others}) == 3
    assert fold(0) == first


def test_streams_and_stretches_share_as_well(state, step, counting_compilations):
    def run(seed):
        batches = list(source_of(seed))
        for source in (data.Stream(batches), source_of(seed, steps_per_epoch=2)):
            trainer.fit(state, trainer.training(step, source), epochs=1)

    run(0)
    with counting_compilations() as counts:
        run(1)
    assert counts == []


def test_a_shared_function_computes_the_same_as_an_unshared_one(state, step):
    trainer.fit(state, trainer.training(step, source_of(0)), epochs=1)
    shared, _ = trainer.fit(state, trainer.training(step, source_of(1), name="other"), epochs=3)
    alone = trainer.training(lambda state, batch: descend(state, batch), source_of(1))
    assert trainer.fingerprint(shared) == trainer.fingerprint(
        trainer.fit(state, alone, epochs=3)[0]
    )


@pytest.mark.parametrize("executor", ["scan", "step"])
def test_no_data_outlives_its_phase(state, step, measure, executor):
    source, split = source_of(0), source_of(1, size=5)
    arrays = [weakref.ref(one.arrays["inputs"]) for one in (source, split)]
    phases = [
        trainer.training(step, source, executor=executor),
        trainer.evaluation(measure, split),
    ]
    after, _ = trainer.fit(state, phases, epochs=1)
    weight = weakref.ref(after.params["w"])
    kept = [len(getattr(function, ATTRIBUTE)) for function in (step, measure)]
    del source, split, phases, after
    gc.collect()
    assert kept == [1, 2]  # for a measure also the result of its trial
    assert [reference() for reference in arrays] == [None, None]
    assert weight() is None


class Closing:
    """A user's own source, which cuts its data by closures."""

    def __init__(self, seed):
        self.source = source_of(seed)
        self.example = self.source.example

    def training(self):
        feed = self.source.training()
        return feed._replace(rows=lambda piece, key: feed.rows(self.source.arrays, key))


def test_a_closure_that_holds_data_is_not_kept(state, step):
    source = Closing(0)
    array = weakref.ref(source.source.arrays["inputs"])
    phase = trainer.training(step, source)
    trainer.fit(state, phase, epochs=1)
    assert not getattr(step, ATTRIBUTE, None)
    del phase, source
    gc.collect()
    assert array() is None


def test_the_cache_is_freed_with_the_step(state):
    def make():
        step = lambda state, batch: descend(state, batch)  # noqa: E731
        trainer.fit(state, trainer.training(step, source_of(0)), epochs=1)
        return weakref.ref(step)

    step = make()
    jax.clear_caches()
    gc.collect()
    assert step() is None


def test_different_computations_are_not_shared(state, step):
    phases = [
        trainer.training(step, source_of(0)),
        trainer.training(step, source_of(0, batch_size=3)),
        trainer.training(step, source_of(0), executor="scan"),
        trainer.training(step, source_of(0), reduce={"loss": "last"}),
        trainer.training(step, source_of(0, steps_per_epoch=3)),
        trainer.training(lambda *both: step(*both), source_of(0)),
    ]
    assert len({id(phase._shared) for phase in phases}) == len(phases)
    again = trainer.training(step, source_of(5), name="again")
    assert again._shared is phases[0]._shared
    members = trainer.population(again, 2)
    assert members._shared is not again._shared


def test_other_settings_of_jax_compile_again(state, step, counting_compilations):
    trainer.fit(state, trainer.training(step, source_of(0)), epochs=1)
    with counting_compilations() as counts, jax.default_matmul_precision("highest"):
        trainer.fit(state, trainer.training(step, source_of(1)), epochs=1)
    assert counts


def test_a_step_keeps_the_last_few_and_phases_keep_their_own(state, step):
    phases = [trainer.training(step, source_of(0, batch_size=size)) for size in range(1, 13)]
    assert len({id(phase._shared) for phase in phases}) == 12
    assert len(getattr(step, ATTRIBUTE)) == KEPT


class Method:
    """A step whose functions accept no attributes, and are new at every access."""

    def step(self, state, batch):
        return descend(state, batch)


def test_a_bound_method_shares_nothing_and_trains(state):
    method = Method()
    phase = trainer.training(method.step, source_of(0))
    after, _ = trainer.fit(state, phase, epochs=1)
    assert not jnp.array_equal(after.params["w"], state.params["w"])


def test_a_jitted_step_is_shared(state, step):
    jitted = jax.jit(step)
    phases = [trainer.training(jitted, source_of(seed)) for seed in (0, 1)]
    assert phases[0]._shared is phases[1]._shared
