"""Attention rollout: how much of each input token is in each token behind a layer (Abnar and Zuidema 2020).

    R_l = A_l R_{l-1},   A_l = residual I + (1 - residual) mean_h pattern_lh,   R_0 = I

Rows are distributions over the input tokens. The mean over heads and the equal share of the residual stream are the
paper's; values, projections and feed-forwards have no say, so it is a map of where attention could have carried
something, not of what it did: compare with ablation or attribution. A query that sees nobody (padding) keeps itself.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.typing import Array, Float, PyTree, axis_sizes
from jattn.understanding import capture


def rollout(pattern: Float[Array, 'L B H T T'], residual: float = 0.5) -> Float[Array, 'L B T T']:
    """The maps behind every layer, queries then input tokens.

    Args:
        pattern: attention weights of all layers, queries then keys.
        residual: the share of a token's own stream, in [0, 1].

    Raises:
        ValueError: patterns that are not square; a share out of range.

    >>> pattern = jnp.tile(jnp.array([[1.0, 0.0], [1.0, 0.0]]), (2, 1, 1, 1, 1))
    >>> rollout(pattern)[:, 0, 1].tolist()
    [[0.5, 0.5], [0.75, 0.25]]
    """
    axis_sizes('rollout', pattern=(pattern, 'L B H T S'))
    if pattern.shape[-1] != pattern.shape[-2]:
        raise ValueError(f'rollout: pattern has shape {pattern.shape}, but queries and keys must be the same tokens')
    if not 0 <= residual <= 1:
        raise ValueError(f'rollout: residual={residual} must be between 0 and 1')
    own = jnp.eye(pattern.shape[-1], dtype=pattern.dtype)[None, None]
    mean = jnp.mean(pattern, axis=2)
    sees = jnp.sum(mean, axis=-1, keepdims=True)
    mixed = jnp.where(sees > 0, residual * own + (1 - residual) * mean, own)
    mixed = mixed / jnp.sum(mixed, axis=-1, keepdims=True)

    def onward(before: Float[Array, 'B T T'], layer: Float[Array, 'B T T']) -> tuple[Array, Array]:
        after = jnp.einsum('bqk,bks->bqs', layer, before)
        return after, after

    start = jnp.broadcast_to(own[0], mixed.shape[1:])
    return jax.lax.scan(onward, start, mixed)[1]


def roll_out(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    *,
    residual: float = 0.5,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
) -> Float[Array, 'L B T T']:
    """The maps behind every layer of a model, all of whose layers are attention.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: what it reads.
        residual: the share of a token's own stream.
        context: positions and segments.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: layers without patterns, which carry tokens in ways that no pattern shows; names them. A source,
            whose tokens come in beside those of the row.
    """
    if context.source is not None:
        raise ValueError('rollout: context.source brings tokens of another row in; a map is of one row')
    there = capture.index(model, params, inputs, context, collections).get('pattern', {})
    missing = [layer for layer in range(len(model.cfg.layer_sites())) if layer not in there]
    if missing:
        raise ValueError(f'rollout: layers {missing} have no attention patterns (those that have: {list(there)})')
    found = capture.run(model, params, inputs, sites=['pattern'], context=context, collections=collections)
    return rollout(found.stack('pattern'), residual)
