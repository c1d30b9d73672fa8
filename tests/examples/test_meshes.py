"""The examples on eight virtual devices."""

import os
import subprocess
import sys

import pytest
from running import EXAMPLES, fingerprint

FLAGS = {
    "text": (
        *("--mesh", "data=4,model=2", "--epochs", "1", "--steps-per-epoch", "4"),
        *("--layers", "1", "--width", "32", "--context", "32"),
    ),
    "cartpole": ("--mesh", "data=8", "--epochs", "2"),
}


@pytest.mark.soak  # smaller tests hold the same laws
@pytest.mark.parametrize("name", FLAGS)
def test_an_example_trains_and_resumes_on_a_mesh(name, tmp_path):
    flags = "--logging.no-report", "--logging.no-tensorboard", "--checkpointing.max-cost", "None"
    command = [sys.executable, EXAMPLES / f"{name}.py", "--run", tmp_path, *FLAGS[name], *flags]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run, again = (
        subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=True
        ).stdout
        for _ in range(2)
    )
    assert fingerprint(again) == fingerprint(run)
