"""Fixtures for many tests: a small task on real digits, and a phase of three lines."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

import trainer
from trainer import data, losses
from trainer.placement.virtual_meshes import place_shapes

jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for states on a mesh

FORMER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
"""Lets XLA compile in three fifths of the time, which is most of what tests take; a later one does
not know it. Child processes inherit it, and the next."""

ONE_MODULE = "--xla_cpu_parallel_codegen_split_count=1"
"""Generates the code of a program at once, which takes a tenth less than in parts on two cores."""

EMITTERS_OF_USERS = os.environ.get("EMITTERS_OF_USERS") == "1" or jax.__version_info__ >= (0, 12)
"""Whether programs are compiled as users compile them; tests marked `emitters` need it."""

if not EMITTERS_OF_USERS and FORMER_EMITTERS not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", ""), FORMER_EMITTERS, ONE_MODULE
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

settings.register_profile("entracte", deadline=None, max_examples=30)
settings.load_profile("entracte")


LINEAR = SimpleNamespace(
    init=lambda key, x: (
        {"w": jax.random.normal(key, (x[0].size, 10)) * 0.01, "b": jnp.zeros(10)},
        {},
    ),
    apply=lambda params, model_state, x, *, key, train: (
        x.reshape(len(x), -1) @ params["w"] + params["b"][None],
        model_state,
    ),
)


@pytest.fixture(scope="session")
def linear():
    """A network of one layer, for any input."""
    return LINEAR


def halve(state, data):
    """A phase: halves the parameters and measures them."""
    size = jnp.abs(state.params["w"]).sum()
    params = jax.tree.map(lambda w: w / 2, state.params)
    return state.replace(params=params, step=state.step + 1), None, {"loss": size}


@pytest.fixture
def state():
    """A state of two parameters, with an optimizer whose rate can be set."""
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.zeros(())}
    opt_state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1).init(params)
    return trainer.TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))


@pytest.fixture
def phase():
    """The phase `train`, which halves the parameters; its metric is `train/loss`."""
    return trainer.Phase("train", halve)


@pytest.fixture(scope="session")
def digits():
    """A small part of the real digits: 200 to train, 50 to validate, in batches of 32."""
    train, val = data.digits(batch_size=32)
    return tuple(
        data.Arrays({name: np.asarray(array)[:n] for name, array in source.arrays.items()}, 32)
        for source, n in ((train, 200), (val, 50))
    )


@pytest.fixture(scope="session")
def task():
    """Softmax regression with Adam."""
    return trainer.supervised(LINEAR, losses.classification, optax.adam(1e-2))


@contextlib.contextmanager
def compiling_fully():
    """Compile as users do, also within a test that compiles quickly."""
    quickly = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(scope="session")
def start(task, digits):
    """The task's state at step 0: the same bits, whichever test asks for it first."""
    with compiling_fully():
        return task.init(jax.random.key(0), digits[0].example)


@pytest.fixture(scope="session")
def train(task, digits):
    """The training phase; one for all tests, since a phase keeps what it compiled."""
    return trainer.training(task.step, digits[0])


@pytest.fixture(scope="session")
def val(task, digits):
    """The evaluation phase."""
    return trainer.evaluation(task.measure, digits[1])


@pytest.fixture
def compiled_quickly():
    """Compile quickly, for code that runs once or twice: XLA's best code costs more than it saves.

    Fixtures of such a test compile quickly too. Tests of bits that optimizations may change do
    without it, to test the code that users run.
    """


@pytest.fixture
def compiled_fully():
    """Compile as users do, in a file whose other tests compile quickly."""
    with compiling_fully():
        yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory, request):
    """Let processes that a test starts keep what they compile for tests of the same folder."""
    folder = tmp_path_factory.getbasetemp() / f"compiled_for_{request.path.parent.name}"
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kept.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def compile_on_mesh():
    """Return a function that compiles a phase for a state's shapes, split by rules over a mesh."""

    def compile_on_mesh(phase, shapes, mesh, rules):
        phase.infer_shapes(place_shapes(shapes, mesh, rules))
        ((traced, _),) = phase._shared.traces.values()
        return traced.lower().compile()

    return compile_on_mesh


@pytest.fixture(scope="session")
def counting_compilations():
    """Return a context that counts the compilations within it."""

    @contextlib.contextmanager
    def counting():
        counts = []

        def count(name, *_, **__):
            if name == "/jax/core/compile/backend_compile_duration":
                counts.append(name)

        jax.monitoring.register_event_duration_secs_listener(count)
        try:
            yield counts
        finally:
            jax.monitoring.unregister_event_duration_listener(count)

    return counting


class _Quickly:
    """Compiles quickly what tests ask for, with their fixtures, and doctests, which run once."""

    def pytest_runtest_setup(self, item):
        quickly = isinstance(item, pytest.DoctestItem) or "compiled_quickly" in item.fixturenames
        jax.config.update("jax_disable_most_optimizations", quickly)


def pytest_configure(config):
    """Compile a program once for all workers and runs: most of the tests' time is XLA's.

    The programs are kept in pytest's own cache; `pytest --cache-clear` begins anew. Doctests, which
    lie outside this folder, compile quickly by a plugin.
    """
    config.pluginmanager.register(_Quickly())
    settings = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)


def pytest_collection_modifyitems(items):
    """Leave tests of the emitters that users have to a process of their own."""
    if not EMITTERS_OF_USERS:
        skip = pytest.mark.skip(reason="tests/test_emitters.py runs it")
        for item in items:
            if item.get_closest_marker("emitters"):
                item.add_marker(skip)


def pytest_collection_finish():
    """Leave what was imported out of garbage collections: they take a tenth of short tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_handlers():
    """Restore the project's logger."""
    log = logging.getLogger("entracte")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers
