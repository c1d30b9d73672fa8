"""Tests of what depends on the device; each also runs on a CPU, where that says anything."""

import jax
import pytest


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.soak), "gpu"])
def platform(request):
    """The platform that JAX runs on; the variant of the other one is skipped.

    On a CPU they take minutes to show little, so that `make test` leaves them out.
    """
    if (here := jax.default_backend()) != request.param:
        pytest.skip(f"needs a {request.param.upper()}: JAX runs on a {here.upper()}")
    return request.param


@pytest.fixture
def gpu():
    """The GPU that JAX runs on."""
    if (here := jax.default_backend()) != "gpu":
        pytest.skip(f"needs a GPU: JAX runs on a {here.upper()}")
    return jax.devices()[0]


@pytest.fixture(autouse=True)
def _quickly_on_a_cpu():
    """Compile quickly where the tests only show that they run; GPUs run what users run."""
    quickly = jax.default_backend() == "cpu"
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
