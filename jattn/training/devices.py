"""The machine: joining a job of several processes, and saying what it runs on."""

import glob

import jax

from jattn.config import ConfigError
from jattn.training.experiment import MeshConfig


def connect(distributed: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins a job of several processes; must come before any other use of JAX. Does nothing for a single process.

    Args:
        distributed: the job's facts are found by JAX (TPU, SLURM, Open MPI).
        coordinator: else HOST:PORT of the first process, with
        processes: their number, and
        process: which one this is.
    """
    if coordinator is not None:
        if processes is None or process is None or not 0 <= process < processes:
            raise ConfigError(
                f'--coordinator={coordinator} needs --processes and --process in [0, processes), '
                f'found {processes} and {process}'
            )
        # A process that dies ends the others within seconds, not minutes.
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=20)
    elif distributed:
        jax.distributed.initialize()


def report(mesh: MeshConfig) -> list[str]:
    """Lines that say which devices the run has, and a warning when an accelerator is there but unused."""
    found = jax.devices()
    lines = [f'devices: {len(found)} x {found[0].device_kind} ({found[0].platform}), {jax.process_count()} process(es)']
    if found[0].platform == 'cpu' and (glob.glob('/dev/nvidia[0-9]*') or glob.glob('/dev/accel[0-9]*')):
        lines.append('warning: an accelerator is present, but JAX runs on the CPU: install its extra (cuda13 or tpu)')
    used = (mesh.data or max(len(found) // (mesh.fsdp * mesh.tensor), 1)) * mesh.fsdp * mesh.tensor
    if used < len(found) and found[0].platform != 'cpu':
        lines.append(f'warning: training.mesh uses {used} of {len(found)} devices')
    return lines
