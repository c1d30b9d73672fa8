"""What is the most that this device gives: matrix products, memory, and copies to and from it?

Measured: TFLOP/s of a matrix product in bfloat16, GB/s of a copy within the device (bytes read and
written), to it and from it. A figure is one call, until its result is there. The maker's peak, by
which utilisation is reckoned, stands beside them where it is known.
"""

import shutil
import subprocess
import sys

import _measuring
import jax
import jax.numpy as jnp
import numpy as np

from trainer.phases.costs.cost import get_peak_flops

SIDE, MEGABYTES = 8192, 1024
QUICK_SIDE, QUICK_MEGABYTES = 128, 1
PRODUCTS = 8
"""In a call."""


def products_per_second(side):
    """Build a function that gives the FLOP/s of products of random matrices, one after another."""
    one, other = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)

    @jax.jit
    def multiply(x, y):
        for _ in range(PRODUCTS):
            x = (x @ y) * side**-0.5
        return x

    def measure():
        seconds = _measuring.timed(lambda: multiply(one, other).block_until_ready())
        return PRODUCTS * 2 * side**3 / seconds / 1e12

    return measure


def copies(megabytes):
    """Build functions that give the GB/s of copies: within the device, to it, and from it."""
    gigabytes = megabytes / 1e3
    host = np.random.default_rng(0).random(int(megabytes * 1e6 / 4), np.float32)
    device = jax.device_put(host)
    change = jax.jit(lambda x: x + 1)

    def within():
        return 2 * gigabytes / _measuring.timed(lambda: change(device).block_until_ready())

    def there():
        return gigabytes / _measuring.timed(lambda: jax.device_put(host).block_until_ready())

    def back():
        fresh = change(device).block_until_ready()  # an array keeps its copy on the host
        return gigabytes / _measuring.timed(lambda: np.asarray(fresh))

    return {
        "copy within the device, GB/s": within,
        "copy to the device, GB/s": there,
        "copy from the device, GB/s": back,
    }


def describe_driver():
    """Return name, driver and memory of each GPU, as NVIDIA's tool lists them."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return listed.stdout.splitlines()


def main():
    options = _measuring.arguments_with_gpu(__doc__).parse_args()
    device = jax.devices()[0]
    if options.gpu and not options.quick and device.platform != "gpu":
        sys.exit(
            f"a GPU is required; JAX runs on {device.platform}: install JAX for CUDA, "
            "pip install 'jax[cuda13]', or pass --quick"
        )
    side, megabytes = (QUICK_SIDE, QUICK_MEGABYTES) if options.quick else (SIDE, MEGABYTES)
    rounds = 3 if options.quick else 10
    contestants = {
        "matrix products in bfloat16, TFLOP/s": products_per_second(side),
        **copies(megabytes),
    }
    samples = _measuring.interleaved(contestants, rounds=rounds, warm_up=2)
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()}
    if (peak := get_peak_flops(device.device_kind)) is not None:
        measured["peak by the maker, TFLOP/s"] = peak / 1e12
    rows = [(name, *_measuring.columns(measured[name])) for name in samples]
    _measuring.show("limits of the device", ("", "median", "quartiles"), rows)
    _measuring.finish(
        options,
        "device_limits",
        unit="TFLOP/s; GB/s",
        warm_up=2,
        repeats=rounds,
        measured=measured,
        ratios={},
        bars=[],
        capability=str(getattr(device, "compute_capability", "")),
        memory=device.memory_stats(),
        listed=describe_driver(),
    )


if __name__ == "__main__":
    main()
