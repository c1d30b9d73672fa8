"""`distributed`: start JAX on several processes, found from the environment or given."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax._src import clusters, xla_bridge  # JAX does not publish what it detects

from trainer.checks.arguments import require_integer
from trainer.host.machine import describe_devices

log = logging.getLogger("entracte")

NAMES = {
    "GceTpuCluster": "Cloud TPU",
    "GkeTpuCluster": "TPUs on Kubernetes",
    "K8sCluster": "Kubernetes",
    "OmpiCluster": "Open MPI",
    "SlurmCluster": "Slurm",
}
"""What JAX's classes of environments are called in messages."""

LAUNCHERS = {
    "SLURM_NTASKS": "a Slurm job, but not started by srun",
    "OMPI_COMM_WORLD_SIZE": "Open MPI, which does not say where its first process runs",
}
"""Variables that count processes, and why JAX may not find the others by them."""

NOT_CONNECTED = "training on one process"


class ProcessSettings(NamedTuple):
    """How one of several processes connects to the others."""

    environment: str
    """Where the settings come from: the name of the environment, or `arguments`."""
    coordinator_address: str
    """`host:port`, where process 0 listens."""
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None
    """None: all devices that the process sees."""


def distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: Sequence[int] | None = None,
    heartbeat_timeout_seconds: int = 60,
    shutdown_timeout_seconds: int = 300,
) -> None:
    """Connect this process to the others of a run; alone on a laptop, it changes nothing.

    Call it first in a script that every process runs. Without arguments it takes what JAX finds in
    the environment: Slurm, Open MPI, Kubernetes, or TPU hosts. Where there is none, training
    runs on one process. What was found is logged at level INFO. Another call with the same settings
    does nothing.

    Args:
        coordinator_address: `host:port`, where process 0 listens for the others.
        num_processes: number of processes; 1 looks for no others.
        process_id: of this process, from 0.
        local_device_ids: of the devices that this process uses. None: all that it sees, or one
            each where several processes of Slurm or Open MPI see the same.
        heartbeat_timeout_seconds: after so long without a sign of life, a process that was killed
            or stopped ends all others, by SIGABRT. If process 0 is killed, they end at once.
        shutdown_timeout_seconds: a process that has finished, or failed by an exception, waits for
            the others so long; then all are ended.

    Raises:
        TypeError, ValueError: a number is out of range, or a setting is neither given nor found.
        RuntimeError: JAX is already connected with other settings, or has used its devices.

    See also:
        docs/how_to/devices/several_machines.md, for the commands that start the processes.

    >>> distributed(num_processes=1)
    """
    if num_processes is not None:
        require_integer("distributed: num_processes", num_processes, 1)
    if process_id is not None:
        require_integer("distributed: process_id", process_id, 0)
    if jax.distributed.is_initialized():
        return _check_same(num_processes, process_id)
    if num_processes == 1:
        return None
    given = {
        "coordinator_address": coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": num_processes,
        "process_id": process_id,
    }
    found = _find_settings(given, None if local_device_ids is None else tuple(local_device_ids))
    if found is None or found.num_processes == 1:
        log.info("%s (%s)", NOT_CONNECTED, "no others were found" if found is None else found[0])
        return None
    if ":" not in found.coordinator_address:
        raise ValueError(
            "trainer.distributed needs coordinator_address as host:port, node1:1234; got "
            f"{found.coordinator_address!r}"
        )
    if xla_bridge.backends_are_initialized():
        raise RuntimeError(
            "trainer.distributed must come before JAX uses its devices, and something has used "
            "them: call it before the first array, jax.devices() or jax.random.key"
        )
    jax.distributed.initialize(
        *found[1:],
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        shutdown_timeout_seconds=shutdown_timeout_seconds,
    )
    log.info(
        "%s: process %d of %d, %s here, %d devices in all; process 0 listens at %s",
        *(found.environment, jax.process_index(), jax.process_count()),
        *(describe_devices(jax.local_devices()), jax.device_count(), found.coordinator_address),
    )
    return None


def _check_same(num_processes: int | None, process_id: int | None) -> None:
    here = jax.process_count(), jax.process_index()
    for asked, actual in zip((num_processes, process_id), here, strict=True):
        if asked not in (None, actual):
            raise RuntimeError(
                f"trainer.distributed: this is process {here[1]} of {here[0]} already, and was "
                f"asked to be {process_id} of {num_processes}: call it once, first in the script"
            )


def _find_settings(
    given: Mapping[str, Any], local_device_ids: tuple[int, ...] | None
) -> ProcessSettings | None:
    """Return the settings given, completed from the environment; None if there are none.

    Raises:
        ValueError: some are missing.
    """
    everything = None not in (*given.values(), local_device_ids)
    environment = None if everything else _detect()
    if environment is None:
        if all(value is None for value in given.values()):
            _warn_of_launcher(os.environ)
            return None
        if missing := [name for name, value in given.items() if value is None]:
            raise ValueError(
                f"trainer.distributed also needs {', '.join(missing)}, which JAX finds by itself "
                f"only under {', '.join(sorted(NAMES.values()))}; got "
                f"{ {name: value for name, value in given.items() if value is not None} }"
            )
        coordinator, count, place = given.values()
        return ProcessSettings("arguments", coordinator, count, place, local_device_ids)
    coordinator, count, place = given.values()
    count = environment.get_process_count() if count is None else count
    place = environment.get_process_id() if place is None else place
    if coordinator is None and count > 1:
        port = os.environ.get("JAX_COORDINATOR_PORT")
        coordinator = environment.get_coordinator_address(300, port)
    if local_device_ids is None and not clusters.cluster.running_in_cloud_tpu_vm:
        local_device_ids = _choose_devices(environment.get_local_process_id(), os.environ)
    name = environment.__name__
    return ProcessSettings(NAMES.get(name, name), coordinator, count, place, local_device_ids)


def _detect() -> Any:
    """Return the class of the environment that JAX detects, or None."""
    kinds = clusters.ClusterEnv._cluster_types
    return next((k for k in kinds if not k.opt_in_only_method and k.is_env_present()), None)


def _choose_devices(place: int | None, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Choose the device of the process at this place on its host; None: all that it sees.

    JAX always takes one: of 8 GPUs seven would idle where a host runs one process, and where Slurm
    shows each process a GPU of its own, that is number 0 for all.

    >>> several = {"SLURM_NTASKS": "16", "SLURM_STEP_NUM_NODES": "2"}
    >>> _choose_devices(3, several), _choose_devices(0, several | {"SLURM_NTASKS": "2"})
    ((3,), None)
    """
    if place is None or environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    slurm = environ.get("SLURM_NTASKS"), environ.get("SLURM_STEP_NUM_NODES")
    one_process = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (
        slurm[0] is not None and slurm[0] == slurm[1]
    )
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    one_device = visible != "" and "," not in visible
    return None if one_process or one_device else (place,)


def _warn_of_launcher(environ: Mapping[str, str]) -> None:
    for name, why in LAUNCHERS.items():
        if environ.get(name, "1") != "1":
            log.warning(
                "%s, although %s=%s: this is %s. Start the script by srun, or pass "
                "coordinator_address, num_processes and process_id to trainer.distributed",
                *(NOT_CONNECTED, name, environ[name], why),
            )
            return
