"""Softmax attention: both forms against a loop in float64, values and gradients, and what the blocks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.ops import attention
from jattn.ops.softmax_attention import cudnn, visibility
from jattn.ops.softmax_attention.reference import attend, attention_mask, attention_pattern, attention_scores
from jattn.ops.softmax_attention.xla import xla_attention

VISIBILITY = ('causal', 'window', 'sinks', 'segments', 'positions')


def blockwise(q, k, v, *, block=8, bias=None, softcap=None, scale=None, **options):
    """The xla form in blocks small enough for the sizes of these tests."""
    places = visibility.locate(q, k, *({**dict.fromkeys(VISIBILITY), 'causal': False, 'sinks': 0} | options).values())
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return xla_attention(*places, q, k, v, bias=bias, softcap=softcap, scale=scale, block=block)


def seen_by_definition(T, S, causal=False, window=None, sinks=0, segments=None, positions=None, batch=2):
    """The mask [B,T,S], token by token, from the words of the definition."""
    pair = lambda x: x if isinstance(x, tuple) else (x, x)
    mask = np.zeros((batch, T, S), bool)
    for b in range(batch):
        ids, places = [], []
        for side, length in enumerate((T, S)):
            ids.append([1] * length if segments is None else list(pair(segments)[side][b]))
            if positions is not None:
                places.append(list(pair(positions)[side][b]))
            else:  # counted within the document
                places.append([sum(other == own for other in ids[-1][:i]) for i, own in enumerate(ids[-1])])
        for t in range(T):
            for s in range(S):
                distance = places[0][t] - places[1][s]
                near = window is None or (distance < window and (causal or -distance < window))
                mask[b, t, s] = (
                    ids[0][t] == ids[1][s] != 0
                    and (not causal or distance >= 0)
                    and (near or (places[1][s] < sinks))
                )
    return mask


def naive(q, k, v, g, mask, bias=None, softcap=None, scale=None):
    """Output and gradients (dq, dk, dv, dbias) of sum(out * g) in float64 NumPy."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    heads = q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    repeated_k, repeated_v = np.repeat(k, heads, 2), np.repeat(v, heads, 2)
    capped = scores = np.einsum('bthk,bshk->bhts', q, repeated_k) * scale
    if softcap is not None:
        capped = softcap * np.tanh(scores / softcap)
    biased = capped if bias is None else capped + np.asarray(bias, np.float64)
    mask = mask[:, None]
    largest = np.max(np.where(mask, biased, -np.inf), -1, keepdims=True)
    weights = np.where(mask, np.exp(biased - np.where(np.isfinite(largest), largest, 0)), 0)
    pattern = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    dpattern = np.einsum('bthv,bshv->bhts', g, repeated_v)
    dbiased = pattern * (dpattern - (pattern * dpattern).sum(-1, keepdims=True))
    dscores = scale * dbiased * (1 if softcap is None else 1 - (capped / softcap) ** 2)
    per_key_head = lambda x: x.reshape(*k.shape[:3], heads, -1).sum(3)
    dk = per_key_head(np.einsum('bhts,bthk->bshk', dscores, q))
    dv = per_key_head(np.einsum('bhts,bthv->bshv', pattern, g))
    dq = np.einsum('bhts,bshk->bthk', dscores, repeated_k)
    dbias = None
    if bias is not None:
        axes = tuple(axis for axis in (0, 1) if bias.shape[axis] == 1 and dbiased.shape[axis] != 1)
        dbias = dbiased.sum(axes, keepdims=True)
    return np.einsum('bhts,bshv->bthv', pattern, repeated_v), (dq, dk, dv, dbias)


def inputs(T, S=None, H=4, G=2, K=6, V=5, batch=2, seed=0, dtype=np.float32):
    rng, S = np.random.default_rng(seed), S or T
    shapes = (batch, T, H, K), (batch, S, G, K), (batch, S, G, V), (batch, T, H, V)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def value_and_gradients(function, q, k, v, g, bias=None, **options):
    def run(q, k, v, g, bias):
        out, pull = jax.vjp(lambda q, k, v, bias: function(q, k, v, bias=bias, **options), q, k, v, bias)
        return out, pull(g)

    return jax.jit(run)(q, k, v, g, bias)


def assert_close(ours, truth, tolerance=1e-5):
    """Relative error in the L2 norm of every leaf."""
    flat, flat_truth = jax.tree.leaves(ours), jax.tree.leaves(truth)
    assert len(flat) == len(flat_truth)
    for x, y in zip(flat, flat_truth):
        x = np.asarray(x, np.float64)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-30)


def packed(lengths, total, batch=2):
    """Rows of documents of these lengths from id 1, a negative length being padding; padding up to `total`."""
    ids, document = [], 0
    for length in lengths:
        document += length > 0
        ids += [document if length > 0 else 0] * abs(length)
    row = np.array(ids + [0] * (total - len(ids)), np.int32)
    return np.stack([row] + [np.roll(row, 3)] * (batch - 1))


PACKED = packed([-2, 9, -3, 12, 1], 37)
SHUFFLED = np.stack([np.random.default_rng(s).permutation(37).astype(np.int32) for s in (1, 2)])
RNG = np.random.default_rng(9)

# name: (T, S, options)
CASES = {
    'everybody_sees_everybody': (13, 21, {}),
    'causal': (37, 37, {'causal': True}),
    'window_both_sides': (37, 37, {'window': 6}),
    'causal_window': (37, 37, {'causal': True, 'window': 5}),
    'causal_window_sinks': (37, 37, {'causal': True, 'window': 5, 'sinks': 3}),
    'segments': (37, 37, {'segments': PACKED}),
    'segments_causal_window_sinks': (37, 37, {'segments': PACKED, 'causal': True, 'window': 4, 'sinks': 2}),
    'a_row_of_padding': (16, 16, {'segments': PACKED[:, :16] * np.array([[0], [1]], np.int32), 'causal': True}),
    'positions_in_no_order': (37, 37, {'positions': SHUFFLED, 'causal': True, 'window': 7, 'sinks': 2}),
    'positions_and_segments_in_no_order': (37, 37, {'positions': SHUFFLED, 'segments': SHUFFLED % 3, 'causal': True}),
    'new_tokens_on_a_cache': (
        5,
        24,
        {
            'causal': True,
            'window': 9,
            'positions': (10 + np.arange(10, dtype=np.int32).reshape(2, 5), np.stack([np.arange(24, dtype=np.int32)] * 2)),
            'segments': (np.full((2, 5), 3, np.int32), np.repeat([[3] * 16 + [0] * 8], 2, 0).astype(np.int32)),
        },
    ),
    'bias': (21, 13, {'bias': RNG.normal(size=(2, 4, 21, 13)).astype(np.float32)}),
    'bias_of_one_row_and_softcap': (
        21,
        21,
        {'bias': RNG.normal(size=(1, 4, 21, 21)).astype(np.float32), 'softcap': 1.5, 'causal': True},
    ),
    'bias_of_one_head': (16, 16, {'bias': RNG.normal(size=(2, 1, 16, 16)).astype(np.float32), 'scale': 0.7}),
    'one_token': (1, 1, {'causal': True}),
}


@pytest.mark.parametrize('case', CASES)
def test_both_forms_equal_the_definition(case):
    T, S, options = CASES[case]
    q, k, v, g = inputs(T, S)
    mask = seen_by_definition(T, S, **{name: value for name, value in options.items() if name in VISIBILITY})
    numbers = {name: value for name, value in options.items() if name not in VISIBILITY}
    truth = naive(q, k, v, g, mask, **numbers)
    assert_close(value_and_gradients(blockwise, q, k, v, g, **options), truth)
    reference = lambda *args, **kwargs: attention(*args, implementation='reference', **kwargs)
    assert_close(value_and_gradients(reference, q, k, v, g, **options), truth)
