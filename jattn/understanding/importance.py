"""How much each head matters to a classifier: several measures, row by row, of the model without it.

    p, q  = softmax of the logits of the whole and the pruned model; c the row's class; e what the classifier reads
    prob_drop  = p_c - q_c                              loss_rise = log p_c - log q_c
    divergence = (KL(p | m) + KL(q | m)) / 2            m = (p + q) / 2; Jensen-Shannon, in 0 .. ln 2
    shift      = 1 - cos(e, e')
    gate       = |dL / d xi| at xi = 1                  of a gate xi on the head: one backward pass for all of them

To prune is to put the head's z to 0, before the output projection, whose bias stays. A set of heads at once is a table
(`prune`): single heads alone underestimate those that have a stand-in. The measures are those of pruning-based studies
of vision encoders (Li et al. 2023), the gate that of Michel et al. (2019).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Bool, Float, Int32, PyTree
from jattn.understanding import ablate, capture
from jattn.understanding.interventions import Replacement

# From the model's outputs to what the classifier reads and its logits.
Read = Callable[[Array], tuple[Float[Array, 'B D'], Float[Array, 'B E']]]
MEASURES = ('prob_drop', 'loss_rise', 'divergence', 'shift', 'gate')


@struct.dataclass
class Importance:
    """What the rows lose without each head; the mean over rows is the measure, their deviation its standard error.

    Attributes:
        layers: one a row.
        prob_drop, loss_rise, divergence, shift, gate: [L, H, B]; NaN where a layer has fewer than H heads.
        is_right: [L, H, B], whether the row is still classified rightly.
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    prob_drop: Float[Array, 'L H B']
    loss_rise: Float[Array, 'L H B']
    divergence: Float[Array, 'L H B']
    shift: Float[Array, 'L H B']
    gate: Float[Array, 'L H B']
    is_right: Bool[Array, 'L H B']


def jensen_shannon(logits: Float[Array, '*N E'], others: Float[Array, '*N E']) -> Float[Array, '*N']:
    """The divergence of the distributions of two sets of logits: 0 where equal, ln 2 where apart; in nats.

    >>> far = jnp.array([[0.0, 1e4]])
    >>> round(float(jensen_shannon(far, -far)[0]), 4), float(jensen_shannon(far, far)[0])
    (0.6931, 0.0)
    """
    p, q = jax.nn.softmax(logits), jax.nn.softmax(others)
    middle = jnp.log(jnp.maximum((p + q) / 2, 1e-12))
    to_middle = lambda own: jnp.sum(own * (jnp.log(jnp.maximum(own, 1e-12)) - middle), axis=-1)
    return jnp.maximum((to_middle(p) + to_middle(q)) / 2, 0)


def prune(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    read: Read,
    tables: Bool[Array, 'N L H'],
    *,
    heads: Replacement | None = None,
    context: Context = Context(),
) -> tuple[Float[Array, 'N B D'], Float[Array, 'N B E']]:
    """What the classifier reads and says without some heads, for each table of them.

    Args:
        model, params, inputs, context: as of `capture.run`.
        read: the classifier; the same function object compiles once.
        tables: which heads are silenced, as of `Replacement.table`.
        heads: of `ablate.prepare`; None: put to 0. With kind='mean' they keep their mean.
    """
    heads = ablate.prepare(model, params, inputs, kind='zero', context=context) if heads is None else heads
    return _pruned(model, read, (params, inputs, context, heads, tables))


def head_importance(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    labels: Int32[Array, 'B'],
    read: Read,
    *,
    context: Context = Context(),
) -> Importance:
    """Every measure of every head: as many passes as there are heads, one after the other, and one backward.

    Args:
        model, params, inputs, context: as of `capture.run`.
        labels: the class of each row.
        read: from the model's outputs to what the classifier reads, and its logits.

    Raises:
        ValueError: a model without heads; labels of other rows than there are.
    """
    if labels.shape != inputs.shape[:1]:
        raise ValueError(f'head_importance: labels have shape {labels.shape}, but there are {len(inputs)} rows')
    heads = ablate.prepare(model, params, inputs, kind='zero', context=context)
    parts = heads.parts
    tables = jnp.stack([heads.table([]), *(heads.table([part]) for part in parts)])
    embedded, logits = prune(model, params, inputs, read, tables, heads=heads, context=context)
    logp = jax.nn.log_softmax(logits)[:, jnp.arange(len(labels)), labels]  # [1 + N, B], the whole model first
    unit = embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)
    measured = {
        'prob_drop': jnp.exp(logp[:1]) - jnp.exp(logp[1:]),
        'loss_rise': logp[:1] - logp[1:],
        'divergence': jensen_shannon(logits[:1], logits[1:]),
        'shift': jnp.sum(jnp.square(unit[:1] - unit[1:]), axis=-1) / 2,  # 1 - cos, and exactly 0 where nothing moved
        'is_right': jnp.argmax(logits[1:], axis=-1) == labels[None],
    }
    layers = tuple(heads.counts)
    shape = (len(layers), max(heads.counts.values()), len(labels))
    rows, columns = jnp.array([layers.index(layer) for layer, _ in parts]), jnp.array([head for _, head in parts])
    empty = {name: jnp.full(shape, jnp.nan if name != 'is_right' else False) for name in measured}
    tabled = {name: empty[name].at[rows, columns].set(value) for name, value in measured.items()}
    return Importance(layers, gate=_gates(model, read, (params, inputs, context, labels, heads)), **tabled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pruned(
    model: nn.Module, read: Read, arrays: tuple[PyTree, ...]
) -> tuple[Float[Array, 'N B D'], Float[Array, 'N B E']]:
    params, inputs, context, heads, tables = arrays
    one = lambda table: read(capture.run(model, params, inputs, edits=heads.edits(table), context=context).outputs)
    return jax.lax.map(one, tables)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gates(model: nn.Module, read: Read, arrays: tuple[PyTree, ...]) -> Float[Array, 'L H B']:
    """|dL/d xi| of each row's own gates: rows do not meet, so that one backward pass gives those of all."""
    params, inputs, context, labels, heads = arrays
    counts, rows = heads.counts, len(labels)

    def loss(gates: Float[Array, 'L B H']) -> Float[Array, '']:
        edits = {
            ('z', layer): Edit(scale=gates[row, :, None, :count, None])
            for row, (layer, count) in enumerate(counts.items())
        }
        logits = read(capture.run(model, params, inputs, edits=edits, context=context).outputs)[1]
        return -jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(rows), labels])

    most = max(counts.values())
    slopes = jnp.abs(jax.grad(loss)(jnp.ones((len(counts), rows, most)))).swapaxes(1, 2)
    there = jnp.arange(most)[None] < jnp.array(list(counts.values()))[:, None]
    return jnp.where(there[:, :, None], slopes, jnp.nan)
