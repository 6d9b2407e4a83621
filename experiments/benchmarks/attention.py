"""Causal softmax attention against `jax.nn.dot_product_attention`: time and temporaries, forward and with gradients.

    python -m experiments.benchmarks.attention --lengths=512,2048,8192 [--pairs=20] [--out=DIR]

Both get the same random float32 arrays: one row with 8 heads of 64 channels for each length, and first the attention of
a small language model, 16 rows of 256 tokens with 4 heads of 32 channels. Prints a table and writes DIR/attention.json;
without --out, records/attention.json beside this file.
"""

from collections.abc import Callable, Sequence

import jax
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from jattn.ops import attention
from jattn.typing import Array

flags.adopt_module_key_flags(harness)

LENGTHS = (512, 2048, 8192)
LANGUAGE_MODEL = {'B': 16, 'T': 256, 'H': 4, 'K': 32}
FORMS = {
    'jattn': lambda q, k, v: attention(q, k, v, causal=True, implementation='xla'),
    'jax.nn': lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation='xla'),
}


def main(argv: Sequence[str]) -> None:
    """Times every shape."""
    del argv
    lengths = [int(length) for length in harness.LENGTHS.value or LENGTHS]
    records = []
    for sizes in [LANGUAGE_MODEL, *({'B': 1, 'T': length, 'H': 8, 'K': 64} for length in lengths)]:
        records += compare_attention(sizes, harness.PAIRS.value)
    print(harness.table(records))
    print(f'written: {harness.save("attention", records, cli.OUT.value)}')


def compare_attention(sizes: dict[str, int], pairs: int) -> list[harness.Record]:
    """The forward pass, and the forward pass with the gradients of q, k and v, at these sizes."""
    shape = tuple(sizes[axis] for axis in 'BTHK')
    *arrays, cotangent = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4))
    gradient_forms = {label: with_gradients(form) for label, form in FORMS.items()}
    records = []
    for title, forms, arguments in [('forward', FORMS, arrays), ('gradients', gradient_forms, [*arrays, cotangent])]:
        contestants = {label: harness.prepare(form, *arguments) for label, form in forms.items()}
        ours, theirs = (jax.tree.leaves(run()) for run in contestants.values())
        facts = {'dtype': 'float32', 'largest_difference': max(float(abs(x - y).max()) for x, y in zip(ours, theirs))}
        name = '{} B{B} T{T} H{H} K{K}'.format(title, **sizes)
        records.append(harness.compare(name, contestants, baseline='jax.nn', pairs=pairs, facts=sizes | facts))
    return records


def with_gradients(form: Callable[[Array, Array, Array], Array]) -> Callable[..., tuple]:
    """The output, and the gradients that a cotangent of it gives."""

    def run(q: Array, k: Array, v: Array, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(form, q, k, v)
        return out, pull(cotangent)

    return run


if __name__ == '__main__':
    cli.run(main)
