"""How tests start the programs: in this process (fast, for errors), or as a user does (for kills and resumes)."""

import json
import os
import subprocess
import sys

import numpy as np
from absl import flags
from absl.testing import flagsaver

from experiments import cli
from jattn.training import checkpoint


def call(program, *arguments):
    """The exit code of `python -m program arguments`, run in this process."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        try:
            return cli.call(program.main, cli.parse([program.__name__, *arguments]))
        except SystemExit as stop:
            return stop.code
        finally:
            flags.FLAGS.mark_as_parsed()


def start(module, *arguments, devices=1, **kwargs):
    """A process of its own, with the tests' compile cache."""
    flags_of_xla = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
    return subprocess.Popen(
        [sys.executable, '-m', module, *arguments],
        env=os.environ | {'XLA_FLAGS': flags_of_xla},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(process, timeout=300):
    """(exit code, output) at its end."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def lines_of(workdir):
    """The objects of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses_of(workdir):
    """step -> train/loss."""
    return {line['step']: line['train/loss'] for line in lines_of(workdir) if 'train/loss' in line}


def assert_same_run(a, b):
    """Two finished workdirs hold the same losses and the same parameters, bit for bit."""
    assert losses_of(a) == losses_of(b)
    _, ours, _ = checkpoint.load(a)
    _, theirs, _ = checkpoint.load(b)
    flat = lambda tree: {str(k): np.asarray(v) for k, v in checkpoint.jax.tree_util.tree_leaves_with_path(tree)}
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)
