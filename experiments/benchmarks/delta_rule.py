"""The delta rules by chunks against their own step forms, and against softmax attention: time and temporaries.

    python -m experiments.benchmarks.delta_rule --lengths=512,2048,8192 [--pairs=20] [--out=DIR]

Gated DeltaNet (a decay per head), Kimi Delta Attention (one per channel) and RWKV-7 (diagonal plus low rank) get the
same random float32 queries, unit keys and values, one row with 8 heads of 64 channels; the forward pass, and the
forward pass with the gradients of everything that the form reads. Softmax attention is `jax.nn.dot_product_attention`,
causal, in comparisons of its own: the length from which on the chunk forms' ratios to it are below 1 is the break-even
length. Prints a table and writes DIR/delta_rule.json; without --out, records/delta_rule.json beside this file.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from experiments.benchmarks.linear_attention import with_gradients
from jattn.ops import diagonal_plus_low_rank, gated_delta_rule
from jattn.typing import Array

flags.adopt_module_key_flags(harness)

LENGTHS = (512, 2048, 8192)
HEADS, CHANNELS = 8, 64
CHUNKS, STEPS, SOFTMAX = 'chunks', 'steps', 'jax.nn softmax'


def main(argv: Sequence[str]) -> None:
    """Times every length."""
    del argv
    lengths = [int(length) for length in harness.LENGTHS.value or LENGTHS]
    records = [record for length in lengths for record in compare_delta_rules(length, harness.PAIRS.value)]
    print(harness.table(records))
    print(f'written: {harness.save("delta_rule", records, cli.OUT.value)}')


def compare_delta_rules(tokens: int, pairs: int) -> list[harness.Record]:
    """The forward pass, then that with all gradients: chunks by steps for each model, and all chunks by softmax."""
    models, cotangent = models_and_inputs(tokens)
    q, k, v = models['gated deltanet'][1][:3]
    facts = {'B': 1, 'T': tokens, 'H': HEADS, 'K': CHANNELS, 'V': CHANNELS, 'dtype': 'float32'}
    records = []
    for title in ('forward', 'gradients'):
        prepare = functools.partial(_prepare, cotangent if title == 'gradients' else None)
        by_chunks = {}
        for model, (function, inputs) in models.items():
            forms = {
                label: prepare(functools.partial(function, implementation=implementation), *inputs)
                for label, implementation in ((CHUNKS, 'xla'), (STEPS, 'reference'))
            }
            by_chunks[model] = forms[CHUNKS]
            records.append(
                harness.compare(f'{title} T{tokens}, {model}', forms, baseline=STEPS, pairs=pairs, facts=facts)
            )
        softmax = prepare(functools.partial(jax.nn.dot_product_attention, is_causal=True), q, k, v)
        contestants = {**by_chunks, SOFTMAX: softmax}
        records.append(harness.compare(f'{title} T{tokens}', contestants, baseline=SOFTMAX, pairs=pairs, facts=facts))
    return records


def models_and_inputs(tokens: int) -> tuple[dict[str, tuple], Array]:
    """By model the public function and its arrays, and a cotangent of the outputs."""
    keys = jax.random.split(jax.random.key(0), 7)
    shape = (1, tokens, HEADS, CHANNELS)
    q, k, v, cotangent = (jax.random.normal(key, shape) for key in keys[:4])
    k /= jnp.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = -0.2 * jax.random.uniform(keys[4], shape)
    strength, rate = jax.random.uniform(keys[5], shape[:3]), jax.random.uniform(keys[6], shape)
    models = {
        'gated deltanet': (gated_delta_rule, (q, k, v, log_decay[..., 0], strength)),
        'kimi delta': (gated_delta_rule, (q, k, v, log_decay, strength)),
        'rwkv7': (diagonal_plus_low_rank, (q, k, v, log_decay, -k, rate * k)),
    }
    return models, cotangent


def _prepare(cotangent: Array | None, form: functools.partial, *inputs: Array) -> harness.Prepared:
    if cotangent is None:
        return harness.prepare(form, *inputs)
    return harness.prepare(with_gradients(form), cotangent, *inputs)


if __name__ == '__main__':
    cli.run(main)
