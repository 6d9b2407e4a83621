"""Softmax attention in three steps that a reader can stop between: scores, pattern, output.

    scores_ts  = c tanh(scale q_t·k_s / c) + bias_ts          (without a softcap c: scale q_t·k_s + bias_ts)
    pattern_ts = exp(scores_ts) / Σ_s' exp(scores_ts')        over the keys that t sees, and 0 for the others
    out_t      = Σ_s pattern_ts v_s

Hidden scores hold a large finite negative number, never −inf; the pattern of a query that sees nobody is 0, and so are
its output and every gradient. Query head h reads key head h // (H // G). Scores and pattern are float32 at least. All
T × S pairs are kept: this form is for tests, for taps and for edits of what stands between the steps, and the fast form
for a handful of queries; `xla.py` is the one for long sequences.
"""

import jax.numpy as jnp
from jax import lax

from jattn.ops.softmax_attention import visibility
from jattn.typing import Array, Bool, Float, at_least_float32, axis_sizes


def attention_mask(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    segments: Array | visibility.Pair | None = None,
    positions: Array | visibility.Pair | None = None,
) -> Bool[Array, 'B T S'] | None:
    """Who sees whom, [B or 1, T, S], with the arguments of `attention`; None where everybody sees everybody.

    >>> x = jnp.zeros((1, 3, 1, 4))
    >>> attention_mask(x, x, causal=True, window=2).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]
    """
    return visibility.visible(*visibility.locate(q, k, causal, window, sinks, segments, positions))


def attention_scores(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    mask: Bool[Array, 'B T S'] | None = None,
    *,
    bias: Float[Array, 'B H T S'] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, 'B H T S']:
    """Scaled products of queries and keys, then softcap, bias and mask.

    >>> x = jnp.ones((1, 2, 1, 4))
    >>> scores = attention_scores(x, x, attention_mask(x, x, causal=True))
    >>> scores[0, 0].tolist()[1], bool(scores[0, 0, 0, 1] < -1e38)
    ([2.0, 2.0], True)
    """
    sizes = axis_sizes('attention', q=(q, 'B T H K'), k=(k, 'B S G K'))
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    products = jnp.einsum('btgrk,bsgk->bgrts', grouped, k, preferred_element_type=at_least_float32(q, k))
    products = products.reshape(*(sizes[axis] for axis in 'BHTS'))
    mask = None if mask is None else mask[:, None]
    return shape_scores(products, bias, mask, scale=default_scale(scale, q), softcap=softcap)


def attention_pattern(
    scores: Float[Array, 'B H T S'], mask: Bool[Array, 'B T S'] | None = None
) -> Float[Array, 'B H T S']:
    """Softmax over the keys that a query sees; the row of a query that sees none is 0.

    >>> attention_pattern(jnp.zeros((1, 1, 2, 2)), jnp.array([[[True, True], [False, False]]])).tolist()
    [[[[0.5, 0.5], [0.0, 0.0]]]]
    """
    seen = True if mask is None else mask[:, None]
    hidden = hidden_score(scores.dtype)
    largest = jnp.max(jnp.where(seen, scores, hidden), axis=-1, keepdims=True)
    largest = lax.stop_gradient(jnp.maximum(largest, hidden))  # a bias may be -inf
    weights = jnp.where(seen, jnp.exp(scores - largest), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def attend(pattern: Float[Array, 'B H T S'], v: Float[Array, 'B S G V']) -> Float[Array, 'B T H V']:
    """The mean of the values under the pattern, in the values' dtype.

    >>> attend(jnp.full((1, 1, 1, 2), 0.5), jnp.array([[[[1.0]], [[3.0]]]])).tolist()
    [[[[2.0]]]]
    """
    grouped = pattern.reshape(pattern.shape[0], v.shape[2], -1, *pattern.shape[2:]).astype(v.dtype)
    out = jnp.einsum('bgrts,bsgv->btgrv', grouped, v, preferred_element_type=at_least_float32(pattern, v))
    return out.reshape(*out.shape[:2], -1, v.shape[3]).astype(v.dtype)


def hidden_score(dtype: jnp.dtype) -> float:
    """The score of a hidden key: its exponential is 0 beside any other, and differences of two stay finite."""
    return -0.7 * float(jnp.finfo(dtype).max)


def default_scale(scale: float | None, q: Array) -> float:
    """K^-1/2 unless given."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def shape_scores(
    products: Float[Array, '...'], bias: Array | None, mask: Array | None, *, scale: float, softcap: float | None
) -> Float[Array, '...']:
    """Products of queries and keys to scores; bias and mask have the rank of the products."""
    scores = products * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    return scores if mask is None else jnp.where(mask, scores, hidden_score(scores.dtype))
