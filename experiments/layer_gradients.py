"""Can a memory be trained over long rows? The outer gradient of a fresh layer, at two lengths; part of `stability`.

    loss = mean over t of r_t . y_t,    x_t and r_t normal, width 128        printed: norm of d loss / d parameters

A memory is differentiated through its own learning: where a step overshoots, the chain of T / chunk steps multiplies,
and the gradient grows exponentially with T while all outputs stay small (the norm at the memory's end hides it). Where
steps are sound the gradient of the mean does not grow with T.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import rich.table

from jattn.memories import MEMORIES, MemoryConfig
from jattn.memories.retention import KL, Decay, Lq
from jattn.training.writers import show
from jattn.typing import Key

WIDTH, LENGTHS = 128, (64, 512)
EXPLODES = 10.0  # the gradient at the longer row over that at the shorter


def literal() -> dict[str, MemoryConfig]:
    """Deep members as their papers print them: forgetting towards zero, Moneta with Yaad's step. All explode."""
    moneta = dataclasses.replace(MEMORIES['moneta'].gates, step=MEMORIES['yaad'].gates.step)
    retentions = {'titans_lmm': Decay(), 'yaad': Decay(), 'omega': Decay(), 'moneta': Lq(), 'memora': KL()}
    printed = {name: dataclasses.replace(MEMORIES[name], retention=own) for name, own in retentions.items()}
    printed['moneta'] = dataclasses.replace(printed['moneta'], gates=moneta)
    return {f'{name}_as_printed': memory for name, memory in printed.items()}


def gradient(memory: MemoryConfig, tokens: int, key: Key) -> float:
    """The norm of the gradient at a row of so many tokens."""
    cfg = dataclasses.replace(memory, width=WIDTH)
    layer, keys = cfg.make(), jax.random.split(key, 3)
    x, readings = jax.random.normal(keys[0], (2, 1, tokens, WIDTH))
    context = cfg.example_context(keys[1], 1, tokens)

    @jax.jit
    def norm() -> jax.Array:
        variables = layer.init(keys[2], x, context)
        loss = lambda variables: jnp.sum(layer.apply(variables, x, context)[0] * readings) / tokens
        return optax.tree.norm(jax.grad(loss)(variables))

    return float(norm())


def measure(memory: MemoryConfig, key: Key) -> dict[str, Any]:
    """The gradients at both lengths, and the verdict: 'holds' or 'EXPLODES'."""
    short, long = (gradient(memory, tokens, key) for tokens in LENGTHS)
    return {'short': short, 'long': long, 'verdict': 'holds' if long < EXPLODES * short else 'EXPLODES'}


def make_table(rows: dict[str, dict[str, Any]]) -> rich.table.Table:
    """A row a memory."""
    table = rich.table.Table(title='the outer gradient of a fresh layer')
    for name in ('name', *(f'T = {tokens}' for tokens in LENGTHS), 'verdict'):
        table.add_column(name, justify='left' if name in ('name', 'verdict') else 'right')
    for name, row in rows.items():
        table.add_row(name, show(row['short']), show(row['long']), row['verdict'])
    return table
