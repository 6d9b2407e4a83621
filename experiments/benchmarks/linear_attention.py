"""Gated linear attention by chunks against its own step form and against softmax attention: time and temporaries.

    python -m experiments.benchmarks.linear_attention --lengths=512,2048,8192 [--pairs=20] [--out=DIR]

All get the same random float32 queries, keys and values, one row with 8 heads of 64 channels; the forward pass, and the
forward pass with the gradients of everything that the form reads. Softmax attention is `jax.nn.dot_product_attention`,
causal: the ratios are to its times. It needs 9 GB at 8192 tokens. Prints a table and writes DIR/linear_attention.json;
without --out, records/linear_attention.json beside this file.
"""

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
SOFTMAX = 'jax.nn softmax'


def main(argv: Sequence[str]) -> None:
    """Times every length."""
    del argv
    lengths = [int(length) for length in harness.LENGTHS.value or LENGTHS]
    records = [record for length in lengths for record in compare_linear_attention(length, harness.PAIRS.value)]
    print(harness.table(records))
    print(f'written: {harness.save("linear_attention", records, cli.OUT.value)}')


def compare_linear_attention(tokens: int, pairs: int) -> list[harness.Record]:
    """The forward pass, and the forward pass with all gradients, at this length."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (1, tokens, HEADS, CHANNELS)
    q, k, v, cotangent = (jax.random.normal(key, shape) for key in keys[:4])
    log_decay = -0.2 * jax.random.uniform(keys[4], shape)
    per_head, per_channel = (q, k, v, log_decay[..., 0]), (q, k, v, log_decay)
    by = lambda implementation: lambda *inputs: gated_linear_attention(*inputs, implementation=implementation)
    forms = {
        'chunks, none': (lambda q, k, v: gated_linear_attention(q, k, v, None, implementation='xla'), (q, k, v)),
        'chunks, per head': (by('xla'), per_head),
        'chunks, per channel': (by('xla'), per_channel),
        'steps, per head': (by('reference'), per_head),
        SOFTMAX: (lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), (q, k, v)),
    }
    runs = {
        f'forward T{tokens}': {label: harness.prepare(form, *inputs) for label, (form, inputs) in forms.items()},
        f'gradients T{tokens}': {
            label: harness.prepare(with_gradients(form), cotangent, *inputs) for label, (form, inputs) in forms.items()
        },
    }
    facts = {'B': 1, 'T': tokens, 'H': HEADS, 'K': CHANNELS, 'V': CHANNELS, 'dtype': 'float32'}
    return [
        harness.compare(title, contestants, baseline=SOFTMAX, pairs=pairs, facts=facts)
        for title, contestants in runs.items()
    ]


def with_gradients(form: Callable[..., Array]) -> Callable[..., tuple]:
    """The output, and the gradients of all inputs that a cotangent of it gives."""

    def run(cotangent: Array, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(form, *inputs)
        return out, pull(cotangent)

    return run


if __name__ == '__main__':
    cli.run(main)
