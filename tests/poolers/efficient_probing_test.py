"""Efficient probing by its paper: which attention it is, what a query reaches, and that a probe leaves its encoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.nn.linear import Linear
from jattn.poolers.attentive import QueryAttention
from jattn.poolers.efficient_probing import EfficientProbingConfig
from jattn.poolers.probe import ProbeConfig

B, T, D, Q = 2, 9, 32, 4
CFG = EfficientProbingConfig(width=D, queries=Q)
RANDOM = np.random.default_rng(0)
X, SEGMENTS = RANDOM.normal(size=(B, T, D)), np.ones((B, T), np.int32)


def parameters(queries=Q, d_out=1, seed=1):
    random = np.random.default_rng(seed)
    values = random.normal(size=(D, queries, D // d_out // queries)) / np.sqrt(D)
    return {'queries': random.normal(size=(queries, D)), 'values': values}


@functools.cache
def program(queries, d_out):
    cfg = EfficientProbingConfig(width=D, queries=queries, d_out=d_out)

    def run(params, x, segments):
        return cfg.make().apply({'params': params}, x, Context(segments=segments))

    return jax.jit(run)


def pool(params, x=X, segments=SEGMENTS, queries=Q, d_out=1):
    """vec and maps in float64."""
    with jax.enable_x64(True):
        return [np.asarray(part) for part in program(queries, d_out)(params, x, segments)]


def attention_pool(params, heads, x=X):
    """Multi-head attention pooling with all four projections: outputs [B, D] and maps, of one query [D]."""
    attention = QueryAttention(heads, D // heads, use_bias=False, out_bias=False)
    params = dict(params)
    query = np.broadcast_to(params.pop('query')[None, None], (B, 1, D))
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        y, maps = attention.apply({'params': params}, jnp.asarray(query), x, x, jnp.ones((B, T), bool))
        return np.asarray(y)[:, 0], np.asarray(maps)


def identity(heads):
    return np.eye(D).reshape(D, heads, D // heads)


def test_one_zero_query_gives_the_mean_through_the_value_map():
    params = parameters(queries=1)
    params['queries'] = np.zeros((1, D))
    vec, maps = pool(params, queries=1)
    np.testing.assert_allclose(maps, 1 / T, atol=1e-15)
    np.testing.assert_allclose(vec, X.mean(axis=1) @ params['values'][:, 0], atol=1e-14)


def test_one_query_is_attention_pooling_of_one_head_without_query_key_and_output_maps():
    params = parameters(queries=1)
    full = {
        'query': params['queries'][0],
        'v_proj': {'kernel': params['values']},
        'o_proj': {'kernel': identity(1).T[:, 0][None]},
    }
    full |= {f'{name}_proj': {'kernel': identity(1)} for name in 'qk'}
    for ours, other in zip(pool(params, queries=1), attention_pool(full, 1)):
        np.testing.assert_allclose(ours, other, atol=1e-13)


def test_queries_are_heads_of_attention_pooling_with_query_and_key_maps_absorbed():
    random, params, channels = np.random.default_rng(2), parameters(), D // Q
    full = {f'{name}_proj': {'kernel': random.normal(size=(D, Q, channels)) / np.sqrt(D)} for name in 'qk'}
    full |= {
        'query': random.normal(size=D),
        'v_proj': {'kernel': params['values']},
        'o_proj': {'kernel': np.eye(D).reshape(Q, -1, D)},
    }
    q = np.einsum('d,dhk->hk', full['query'], full['q_proj']['kernel'])
    absorbed = np.einsum('dhk,hk->hd', full['k_proj']['kernel'], q) / np.sqrt(channels) * np.sqrt(D)
    for ours, other in zip(pool(params | {'queries': absorbed}), attention_pool(full, Q)):
        np.testing.assert_allclose(ours, other, atol=1e-13)


def test_order_and_padding_change_nothing_and_maps_sum_to_one():
    params, order = parameters(), np.random.default_rng(3).permutation(T)
    vec, maps = pool(params)
    other, moved = pool(params, X[:, order])
    np.testing.assert_allclose(other, vec, atol=1e-14)
    np.testing.assert_allclose(moved, maps[:, :, order], atol=1e-14)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-14)
    segments = SEGMENTS.copy()
    segments[:, [0, 7, 8]] = 0
    masked, masked_maps = pool(params, X, segments)
    garbage, _ = pool(params, np.where(segments[:, :, None] > 0, X, 1e30), segments)
    np.testing.assert_array_equal(masked, garbage)
    np.testing.assert_allclose(masked_maps.sum(axis=-1), 1, atol=1e-14)
    assert np.all(masked_maps[:, :, [0, 7, 8]] == 0) and np.all(masked_maps[:, :, 1:7] > 0)


def test_a_query_changes_its_own_slice_alone():
    params, channels = parameters(), D // Q
    vec, maps = pool(params)
    for j in range(Q):
        queries = params['queries'].copy()
        queries[j] += 1.0
        other, other_maps = pool(params | {'queries': queries})
        changed = np.any((vec != other).reshape(B, Q, channels), axis=(0, 2))
        np.testing.assert_array_equal(changed, np.arange(Q) == j)
        np.testing.assert_array_equal(np.any(maps != other_maps, axis=(0, 2)), np.arange(Q) == j)


@pytest.mark.parametrize(('queries', 'd_out'), [(1, 1), (8, 1), (8, 2), (32, 1)])
def test_parameters_are_those_of_queries_and_values(queries, d_out):
    cfg = dataclasses.replace(CFG, queries=queries, d_out=d_out)
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.ones((1, T, D)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == queries * D + D * (D // d_out)
    assert cfg.vector_size == D // d_out


def test_queries_must_divide_the_vector():
    with pytest.raises(ValueError, match='width / d_out=32 must be a multiple of queries=5'):
        jax.eval_shape(dataclasses.replace(CFG, queries=5).make().init, jax.random.key(0), jnp.ones((1, T, D)))


class Encoder(nn.Module):
    """A layer below a probe."""

    probe: ProbeConfig

    def setup(self):
        self.layer, self.head = Linear((D,), ('embed', 'mlp')), self.probe.make()

    def features(self, x):
        return jnp.tanh(self.layer(x))

    def __call__(self, x, context):
        return self.head(self.features(x), context)[0]


@pytest.mark.parametrize('frozen', [True, False])
def test_a_frozen_encoder_gets_no_gradient_and_cached_features_give_the_same_loss(frozen):
    model = Encoder(ProbeConfig(width=D, pooler=EfficientProbingConfig(queries=Q), classes=3, frozen=frozen))
    x, labels, context = jnp.float32(X), jnp.array([0, 2]), Context(train=True)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), x, context))
    stats = variables['batch_stats']

    def cross_entropy(logits):
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(B), labels])

    @jax.jit
    def loss(params):
        return cross_entropy(model.apply({'params': params, 'batch_stats': stats}, x, context))

    grads = jax.jit(jax.grad(loss))(variables['params'])
    assert np.any(grads['layer']['kernel'] != 0) != frozen
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads['head']))
    if frozen:
        cached = model.apply(variables, x, method='features')
        head = {'params': variables['params']['head'], 'batch_stats': stats['head']}
        logits, _ = model.probe.make().apply(head, cached, context)
        np.testing.assert_allclose(cross_entropy(logits), loss(variables['params']), rtol=1e-6)
