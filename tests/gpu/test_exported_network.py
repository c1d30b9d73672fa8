"""An exported network: the same file returns the same values on a GPU and on the CPU beside it."""

import jax
import numpy as np

import models
import trainer


def test_a_file_runs_on_the_gpu_as_on_the_cpu(gpu, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    network = models.cnn(classes=10, channels=(8,), hidden=16)
    params, model_state = jax.jit(network.init)(jax.random.key(0), images)
    file = tmp_path / "cnn.jaxexport"
    trainer.export(network, params, {"inputs": images}, file, model_state=model_state)
    run = jax.jit(jax.export.deserialize(file.read_bytes()).call)
    found = {
        device: np.asarray(run(jax.device_put(images[:3], device)))
        for device in (gpu, jax.devices("cpu")[0])
    }
    one, other = found.values()
    assert one.shape == (3, 10)
    np.testing.assert_allclose(one, other, rtol=0.01, atol=0.01)  # GPUs may round to TF32
