"""A real job of several processes on this machine: what a pod runs, at a size that anyone can try.

    python -m launch.local --processes=2 --devices=2 -- --config=lm_bytes --size=tiny --workdir=runs/two

Every process runs `python -m experiments.run` with the flags after `--`, on `--devices` virtual CPU devices, joined by
JAX's own runtime. The first failure ends the group. Ctrl-C and SIGTERM are passed on: the run saves and ends.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments import cli
from jattn.config import ConfigError

flags.declare_key_flag('processes')
_DEVICES = flags.DEFINE_integer('devices', 1, 'Virtual CPU devices of each.', lower_bound=1)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Prints the commands and ends.')
GRACE_SECONDS = 30  # that the others get to end by themselves once one has failed


def main(argv: Sequence[str]) -> int:
    """Starts the group, waits for it, returns its first failure's code."""
    processes = cli.PROCESSES.value or 2
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    commands = [command(argv[1:], process, processes, port) for process in range(processes)]
    if _DRY_RUN.value:
        print('\n'.join(f'{environment(_DEVICES.value)} {" ".join(words)}' for words in commands))
        return 0
    if not argv[1:]:
        raise ConfigError('nothing to run: give the flags of experiments.run after --')
    env = os.environ | dict(pair.split('=', 1) for pair in environment(_DEVICES.value).split())
    group = [subprocess.Popen(words, env=env) for words in commands]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [process.send_signal(signal.SIGTERM) for process in group])
    return wait(group)


def command(flags_of_run: Sequence[str], process: int, processes: int, port: int) -> list[str]:
    """The command of one process."""
    place = [f'--coordinator=127.0.0.1:{port}', f'--processes={processes}', f'--process={process}']
    return [sys.executable, '-m', 'experiments.run', *flags_of_run, *place]


def environment(devices: int) -> str:
    """The variables of every process, as a shell would write them."""
    return f'JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count={devices}'


def wait(group: list[subprocess.Popen]) -> int:
    """Waits for all; after a first failure the others get a while, then are killed."""
    deadline = None
    while any(process.poll() is None for process in group):
        failed = [process.returncode for process in group if process.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in group:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in group]
    return next((abs(code) for code in codes if code), 0)


if __name__ == '__main__':
    cli.run(main, takes_rest=True)
