"""Causal attention over a window beside persistent keys, which every token of every document sees (Titans).

    z_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s      over the persistent s, and the s of t's document with
                                                        0 <= position_t - position_s < window

Blocks of `window` queries see their own block of keys and the one before, so memory is linear in the length. Persistent
keys have no position: they are not rotated, take no slot and are outside the window. State: a ring of `window` keys.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Rows
from jattn.nn.cache import KeyValues, RingCache, View
from jattn.nn.linear import Linear
from jattn.nn.rotary import rotate
from jattn.ops.softmax_attention.reference import attend, attention_pattern, attention_scores
from jattn.typing import Array, Bool, Float

Always = tuple[Float[Array, 'B N H K'], Float[Array, 'B N H V']] | None  # persistent keys and values


class WindowedAttention(nn.Module):
    """`z, state = attention(x, rows, persistent, state)`, before any output projection.

    Attributes:
        heads, channels: H and K.
        window: how many tokens a query sees, itself included.
        rotary_base: of the rotary embedding; None: no positions.
    """

    heads: int
    channels: int
    window: int
    rotary_base: float | None = 10_000.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'B T D'],
        rows: Rows,
        persistent: Float[Array, 'N D'] | None = None,
        state: KeyValues | None = None,
    ) -> tuple[Float[Array, 'B T H K'], KeyValues | None]:
        split, axes = (self.heads, self.channels), ('embed', 'heads', 'head')
        q_proj, k_proj, v_proj = (Linear(split, axes, name=f'{name}_proj') for name in 'qkv')
        always = None
        if persistent is not None:
            fixed = persistent.astype(x.dtype)
            always = tuple(jnp.broadcast_to(f(fixed)[None], (len(x), *f(fixed).shape)) for f in (k_proj, v_proj))
        q = q_proj(x)
        state, view = RingCache(self.window).extend(state, q, k_proj(x), v_proj(x), rows, self._rotate)
        return windowed_attention(view, self.window, q, always), state

    def _rotate(self, x: Array, positions: Array) -> Array:
        return x if self.rotary_base is None else rotate(x, positions, self.rotary_base)


def windowed_attention(
    view: View, window: int, plain: Float[Array, 'B T H K'], always: Always
) -> Float[Array, 'B T H V']:
    """The attention of a view whose keys are those of a cache (perhaps none) and then the call's own.

    `plain` are the queries as they were before rotation: what they score with a persistent key has no position in it.
    """
    batch, tokens = view.q.shape[:2]
    if view.segments is None:
        q_ids = k_ids = jnp.ones((batch, tokens), jnp.int32)
        q_at = k_at = jnp.broadcast_to(jnp.arange(tokens)[None], (batch, tokens))
    else:
        (q_ids, k_ids), (q_at, k_at) = view.segments, view.positions
    if tokens == 1:  # a step reads the ring alone
        return _attend(view.q, plain, view.k, view.v, k_ids, k_at, q_ids, q_at, window=window, always=always)

    block, cached = min(window, tokens), view.k.shape[1] - tokens
    count = -(-tokens // block)

    def cut(x: Array) -> Array:
        """[B, T, ...] to [B, N, block, ...]; what fills it up has id 0."""
        x = jnp.pad(x, ((0, 0), (0, count * block - tokens), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(batch, count, block, *x.shape[2:])

    def with_block_before(x: Array) -> Array:
        """The keys of every block after those of the one before; before the first stands the cache."""
        own, cache = cut(x[:, cached:]), x[:, None, :cached]
        if count > 1:
            cache = jnp.pad(cache, ((0, 0), (0, 0), (block - cached, 0), *[(0, 0)] * (x.ndim - 2)))
            cache = jnp.concatenate([cache, own[:, :-1]], axis=1)
        return jnp.concatenate([cache, own], axis=2)

    keys = tuple(with_block_before(x) for x in (view.k, view.v, k_ids, k_at))
    # Nothing of a block is kept for the backward pass but its inputs.
    attend_block = jax.checkpoint(functools.partial(_attend, window=window, always=always))
    z = jax.vmap(attend_block, in_axes=1, out_axes=1)(cut(view.q), cut(plain), *keys, cut(q_ids), cut(q_at))
    return z.reshape(batch, count * block, *z.shape[3:])[:, :tokens]


def _attend(
    q: Array,
    plain: Array,
    k: Array,
    v: Array,
    k_ids: Array,
    k_at: Array,
    q_ids: Array,
    q_at: Array,
    *,
    window: int,
    always: Always,
) -> Float[Array, 'B T H V']:
    """Every query against every key of a block, and against the persistent keys."""
    behind = q_at[:, :, None] - k_at[:, None, :]
    mask = (q_ids[:, :, None] == k_ids[:, None, :]) & (q_ids[:, :, None] > 0) & (behind >= 0) & (behind < window)
    return attend_beside(q, plain, k, v, mask, q_ids > 0, always)


def attend_beside(
    q: Float[Array, 'B T H K'],
    plain: Float[Array, 'B T H K'],
    k: Float[Array, 'B S H K'],
    v: Float[Array, 'B S H V'],
    mask: Bool[Array, 'B T S'],
    real: Bool[Array, 'B T'],
    always: Always,
) -> Float[Array, 'B T H V']:
    """Masked attention over the keys and the persistent ones, which all real queries see."""
    scores = attention_scores(q, k, mask)
    if always is not None:
        fixed_k, fixed_v = always
        seen = jnp.broadcast_to(real[:, :, None], (*real.shape, fixed_k.shape[1]))
        scores = jnp.concatenate([attention_scores(plain, fixed_k, seen), scores], axis=-1)
        mask, v = jnp.concatenate([seen, mask], axis=-1), jnp.concatenate([fixed_v.astype(v.dtype), v], axis=1)
    return attend(attention_pattern(scores, mask), v)
