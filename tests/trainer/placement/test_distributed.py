"""Connecting processes: what is found in the environment, and what is refused.

Two real processes connect in tests/reliability/test_two_processes.py.
"""

import logging
import subprocess
import sys

import jax
import pytest

import trainer

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
ONE_NODE_EACH = SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
ARGUMENTS = {"coordinator_address": "node1:1234", "num_processes": 2, "process_id": 1}


@pytest.fixture
def connected(monkeypatch):
    """Collect what JAX would be connected with; no environment but the test's."""
    calls = []

    def initialize(coordinator, count, place, local, **_):
        calls.append((coordinator, count, place, None if local is None else list(local)))

    for name in (*SLURM, *OPEN_MPI, "JAX_COORDINATOR_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(trainer.placement.distributed.xla_bridge, "backends_are_initialized", bool)
    return calls


@pytest.mark.parametrize(
    ("environ", "arguments", "wanted"),
    [
        (SLURM, {}, ("node07:61443", 16, 11, [3])),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, {}, ("node07:61443", 16, 11, None)),
        (SLURM, {"local_device_ids": [0, 1]}, ("node07:61443", 16, 11, [0, 1])),
        (ONE_NODE_EACH, {}, ("node07:61443", 2, 1, None)),
        (SLURM, {"coordinator_address": "login:9"}, ("login:9", 16, 11, [3])),
        (OPEN_MPI, {}, ("10.96.0.1:61441", 4, 2, None)),
        ({}, ARGUMENTS, ("node1:1234", 2, 1, None)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {"num_processes": 2, "process_id": 0}, ("a:1", 2, 0)),
    ],
)
def test_settings_come_from_the_environment_and_arguments_replace_them(
    connected, monkeypatch, environ, arguments, wanted
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    trainer.distributed(**arguments)
    assert connected[0][: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, ["no others were found"]),
        (ONE_NODE_EACH | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ["(Slurm)"]),
        ({"SLURM_NTASKS": "16"}, ["not started by srun", "no others were found"]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ["does not say where", "no others were found"]),
    ],
)
def test_one_process_trains_alone_and_a_launcher_that_is_not_understood_is_named(
    connected, monkeypatch, caplog, environ, said
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO, "entracte")
    trainer.distributed()
    assert not connected
    for record, part in zip(caplog.messages, said, strict=True):
        assert part in record
        assert "training on one process" in record


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"coordinator_address": "node1:1234", "process_id": 0},
            "also needs num_processes, which JAX finds by itself only under Cloud TPU, Kubernetes",
        ),
        (ARGUMENTS | {"coordinator_address": "node1"}, "as host:port, node1:1234; got 'node1'"),
        (ARGUMENTS | {"num_processes": 0}, "num_processes must be a whole number of at least 1"),
    ],
)
def test_what_is_missing_or_out_of_range_is_named(connected, arguments, said):
    with pytest.raises(ValueError, match=said):
        trainer.distributed(**arguments)


def test_it_must_come_before_devices_are_used(connected, monkeypatch):
    jax.devices()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="must come before JAX uses its devices"):
        trainer.distributed(**ARGUMENTS)


def test_a_second_call_does_nothing_unless_it_asks_for_something_else(connected, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    trainer.distributed()
    trainer.distributed(num_processes=1, process_id=0)
    assert not connected
    with pytest.raises(RuntimeError, match="process 0 of 1 already, and was asked to be 1 of 2"):
        trainer.distributed(**ARGUMENTS)


def test_importing_everything_uses_no_device():
    code = "import hooks, models, trainer; from jax._src import xla_bridge as x; "
    code += "assert not x.backends_are_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
