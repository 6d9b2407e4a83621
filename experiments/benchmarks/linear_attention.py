"""Gated linear attention by chunks against its own step form, and against softmax attention: time and temporaries.

    python -m experiments.benchmarks.linear_attention --lengths=512,2048,8192 [--pairs=20] [--out=DIR]

All get the same random float32 queries, keys and values, one row with 8 heads of 64 channels; the forward pass, and the
forward pass with the gradients of everything that the form reads. Softmax attention is `jax.nn.dot_product_attention`,
causal, in comparisons of its own: at 8192 tokens it needs 9 GB, and who runs next pays for the memory it gave back.
Prints a table and writes DIR/linear_attention.json; without --out, records/linear_attention.json beside this file.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from jattn.ops import gated_linear_attention
from jattn.typing import Array

flags.adopt_module_key_flags(harness)

LENGTHS = (512, 2048, 8192)
HEADS, CHANNELS = 8, 64
CHUNKS, STEPS, SOFTMAX = 'chunks, per head', 'steps, per head', 'jax.nn softmax'


def main(argv: Sequence[str]) -> None:
    """Times every length."""
    del argv
    lengths = [int(length) for length in harness.LENGTHS.value or LENGTHS]
    records = [record for length in lengths for record in compare_linear_attention(length, harness.PAIRS.value)]
    print(harness.table(records))
    print(f'written: {harness.save("linear_attention", records, cli.OUT.value)}')


def compare_linear_attention(tokens: int, pairs: int) -> list[harness.Record]:
    """The forward pass, and the forward pass with all gradients, at this length: chunks by steps, chunks by softmax."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (1, tokens, HEADS, CHANNELS)
    q, k, v, cotangent = (jax.random.normal(key, shape) for key in keys[:4])
    log_decay = -0.2 * jax.random.uniform(keys[4], shape)
    chunks, steps = (
        functools.partial(gated_linear_attention, implementation=implementation)
        for implementation in ('xla', 'reference')
    )
    forms = {
        'chunks, no decay': (lambda q, k, v: chunks(q, k, v, None), (q, k, v)),
        CHUNKS: (chunks, (q, k, v, log_decay[..., 0])),
        'chunks, per channel': (chunks, (q, k, v, log_decay)),
        STEPS: (steps, (q, k, v, log_decay[..., 0])),
        SOFTMAX: (functools.partial(jax.nn.dot_product_attention, is_causal=True), (q, k, v)),
    }
    passes = {
        'forward': {label: harness.prepare(form, *inputs) for label, (form, inputs) in forms.items()},
        'gradients': {
            label: harness.prepare(with_gradients(form), cotangent, *inputs) for label, (form, inputs) in forms.items()
        },
    }
    facts = {'B': 1, 'T': tokens, 'H': HEADS, 'K': CHANNELS, 'V': CHANNELS, 'dtype': 'float32'}
    records = []
    for title, contestants in passes.items():
        softmax = {CHUNKS: contestants[CHUNKS], SOFTMAX: contestants.pop(SOFTMAX)}
        for baseline, group in ((STEPS, contestants), (SOFTMAX, softmax)):
            name = f'{title} T{tokens}'
            records.append(harness.compare(name, group, baseline=baseline, pairs=pairs, facts=facts))
    return records


def with_gradients(form: Callable[..., Array]) -> Callable[..., tuple]:
    """The output, and the gradients of all inputs that a cotangent of it gives."""

    def run(cotangent: Array, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(form, *inputs)
        return out, pull(cotangent)

    return run


if __name__ == '__main__':
    cli.run(main)
