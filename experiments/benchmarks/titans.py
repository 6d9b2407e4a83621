"""Titans' memory against the PyTorch package `titans-pytorch`, at like sizes and rules, and against our own oracle.

    python -m venv peers && peers/bin/pip install torch titans-pytorch
    python -m experiments.benchmarks.titans --peer_python=peers/bin/python --lengths=512,2048 [--out=DIR]

One row, 4 heads of d channels, a two-layer memory of expansion 4, chunks of 64, float32, forward and backward with
respect to the input and all parameters. Contestants:

    dual            `titans_lmm` as it ships: gates and a gradient a token, taken at the start of chunks of 64
    oracle          the same, token by token (`path='generic'`)
    peer, same      NeuralMemory(chunk_size=1, batch_size=64): a gradient and gates a token, weights move as ours
    peer, coarse    NeuralMemory(chunk_size=64): one mean gradient and one gate a chunk

The peer is its package's module with its own projections; it has no short convolutions, no persistent tokens and no
output norm, and ours are left out too. It runs in a process of its own (its Python given by --peer_python, never among
our requirements) that is asked for one turn at a time, so that turns interleave; both sides have the same cores. Prints
a table and writes DIR/titans.json. Peak memory is the growth of each process's resident set over one pass in a process
that has done nothing else.
"""

import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from jattn.config import ConfigError
from jattn.memories import MEMORIES
from jattn.memories.recipe import Recipe

flags.adopt_module_key_flags(harness)
_PEER = flags.DEFINE_string('peer_python', None, 'The Python that has torch and titans-pytorch.')

LENGTHS, CHANNELS, HEADS, CHUNK = (512, 2048), (32, 64), 4, 64
SERVER = pathlib.Path(__file__).with_name('titans_peer.py')


class Peer:
    """The peer's process: `peer(setting)` runs one forward and backward pass there and waits for it."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        if not self._ask('hello').get('ready'):
            raise ConfigError(f'--peer_python={python}: torch and titans-pytorch cannot be imported there')

    def _ask(self, what: str, **arguments: object) -> dict[str, object]:
        self._process.stdin.write(json.dumps({'do': what, **arguments}) + '\n')
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError('--peer_python: the peer ended; its own message stands above')
        return json.loads(line)

    def make(self, **setting: object) -> dict[str, object]:
        """Builds a module and its input in the peer; returns what it knows of itself."""
        return self._ask('make', **setting)

    def run(self, name: str) -> None:
        """One pass of a module that was made."""
        self._ask('run', name=name)

    def close(self) -> None:
        """Ends the peer."""
        self._process.stdin.close()
        self._process.wait()


def main(argv: Sequence[str]) -> None:
    """Times every length and head size."""
    del argv
    if _PEER.value is None:
        raise ConfigError('--peer_python is needed: a Python with torch and titans-pytorch (see the top of this file)')
    records = []
    for channels in CHANNELS:
        for length in [int(n) for n in harness.LENGTHS.value or LENGTHS]:
            records.append(compare_titans(length, channels, harness.PAIRS.value, _PEER.value))
            print(harness.table(records[-1:]), flush=True)
    print(f'written: {harness.save("titans", records, cli.OUT.value)}')


def compare_titans(tokens: int, channels: int, pairs: int, python: str) -> harness.Record:
    """All contestants at one size; ratios are to our dual form."""
    width = HEADS * channels
    contestants = {label: ours(tokens, width, path) for label, path in (('dual', 'auto'), ('oracle', 'generic'))}
    peer = Peer(python)
    facts = {'B': 1, 'T': tokens, 'H': HEADS, 'K': channels, 'chunk': CHUNK, 'expansion': 4, 'layers': 2}
    for label, setting in (
        ('peer, same', {'chunk_size': 1, 'batch_size': CHUNK}),
        ('peer, coarse', {'chunk_size': CHUNK}),
    ):
        setting |= dict(name=label, tokens=tokens, width=width, heads=HEADS, channels=channels)
        facts[label] = peer_memory(python, setting)
        peer.make(**setting)
        contestants[label] = lambda name=label: peer.run(name)
    try:
        return harness.compare(
            f'titans_lmm d{channels} T{tokens}', contestants, baseline='dual', pairs=pairs, seconds=120, facts=facts
        )
    finally:
        peer.close()


def peer_memory(python: str, setting: dict[str, object]) -> dict[str, object]:
    """The peer's versions and the growth of its peak memory, in a process that does nothing else."""
    peer = Peer(python)
    try:
        return peer.make(**setting)
    finally:
        peer.close()


def ours(tokens: int, width: int, path: str) -> harness.Prepared:
    """One compiled pass of our layer: output, gradients of input and parameters."""
    plain = Recipe(convolution=0, norm='none', gate='none')
    cfg = dataclasses.replace(
        MEMORIES['titans_lmm'], width=width, heads=HEADS, chunk=CHUNK, persistent=0, recipe=plain, path=path
    )
    mixer, x = cfg.make(), jax.random.normal(jax.random.key(0), (1, tokens, width))
    params = jax.jit(mixer.init)(jax.random.key(1), x)['params']

    def step(params: dict, x: jax.Array) -> tuple:
        def loss(params: dict, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(mixer.apply({'params': params}, x)[0]))

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    return harness.prepare(step, params, x)


if __name__ == '__main__':
    cli.run(main)
