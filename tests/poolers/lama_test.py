"""LAMA by its paper: scores of length one over the heads, low rank, and what its maps cannot do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.poolers.lama import LAMAConfig, normalized_scores

B, T, D, H = 2, 11, 32, 4
CFG = LAMAConfig(width=D, heads=H, project=False)
X = np.random.default_rng(0).normal(size=(B, T, D))
SEGMENTS = np.ones((B, T), np.int32)
PADDED = np.array([[0, 0] + [1] * 9, [5] * 7 + [0] * 4], np.int32)


def parameters(heads=H, rank=1, scale=1.0):
    random = np.random.default_rng(1)
    return {f'{name}_proj': {'kernel': scale * random.normal(size=(D, heads, rank)) / np.sqrt(D)} for name in 'pq'}


@functools.cache
def program(cfg):
    def run(params, x, segments, given):
        return cfg.make().apply({'params': params}, x, Context(segments=segments), given)

    return jax.jit(run)


def pool(params, x=X, segments=SEGMENTS, given=None, **fields):
    """S [B, H, D] and the maps in float64."""
    cfg = dataclasses.replace(CFG, **fields)
    with jax.enable_x64(True):
        vec, maps = program(cfg)(params, x, segments, given)
        return np.asarray(vec).reshape(B, cfg.heads, D), np.asarray(maps)


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_one_head_has_scores_of_one_or_minus_one_and_two_weights():
    params = parameters(heads=1)
    p, q = (params[f'{name}_proj']['kernel'][:, :, 0] for name in 'pq')
    products = (X.mean(axis=1) @ p)[:, None] * (X @ q)
    with jax.enable_x64(True):
        f = normalized_scores(jnp.asarray(X.mean(axis=1) @ p)[:, None, :, None], jnp.asarray(X @ q)[..., None])
    np.testing.assert_array_equal(f, np.sign(products))
    _, maps = pool(params, heads=1)
    for row in maps:
        low, high = np.unique(row.round(14))
        np.testing.assert_allclose(high / low, np.e**2, rtol=1e-10)


@pytest.mark.parametrize('rank', [1, 3])
def test_it_is_a_bilinear_form_a_head_of_that_rank(rank):
    params = parameters(rank=rank)
    p, q = (params[f'{name}_proj']['kernel'] for name in 'pq')
    forms = np.einsum('dhr,ehr->hde', p, q)
    assert all(np.linalg.matrix_rank(form) == rank for form in forms)
    f = np.tanh(np.einsum('bd,hde,bte->bth', X.mean(axis=1), forms, X))
    f /= np.linalg.norm(f, axis=-1, keepdims=True)
    expected = softmax(np.moveaxis(f, 1, 2))
    summed, maps = pool(params, rank=rank)
    np.testing.assert_allclose(maps, expected, atol=1e-13)
    np.testing.assert_allclose(summed, expected @ X, atol=1e-13)


def test_maps_are_distributions_whose_weights_differ_by_e_squared_at_most():
    _, maps = pool(parameters(scale=30.0), segments=PADDED)
    assert maps.shape == (B, H, T)
    real = PADDED > 0
    for own, seen in zip(maps, real):
        assert np.all(own[:, ~seen] == 0) and np.all(own[:, seen] > 0)
        ratio = own[:, seen].max(axis=1) / own[:, seen].min(axis=1)
        assert np.all(ratio <= np.e**2 + 1e-9) and np.max(ratio) > 2
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-14)


def test_scores_have_length_one_over_the_heads_and_zero_tokens_no_nan():
    random = np.random.default_rng(2)
    with jax.enable_x64(True):
        p, q = (jnp.asarray(random.normal(size=shape)) for shape in ((B, 1, H, 2), (B, T, H, 2)))
        f = normalized_scores(p, q)
        np.testing.assert_allclose(np.sum(np.square(f), axis=-1), 1, atol=1e-14)
        at_zero = jax.grad(lambda q: jnp.sum(jnp.sin(normalized_scores(p, q))))(jnp.zeros_like(q))
        assert np.all(normalized_scores(p, 0 * q) == 0) and np.all(np.isfinite(at_zero))


def test_a_learned_or_given_query_that_is_a_rows_mean_reproduces_that_row():
    params = parameters()
    summed, maps = pool(params)
    learned, learned_maps = pool(params | {'query': X[1].mean(axis=0)}, query='learned')
    np.testing.assert_allclose(learned[1], summed[1], atol=1e-13)
    np.testing.assert_allclose(learned_maps[1], maps[1], atol=1e-13)
    assert np.max(np.abs(learned_maps[0] - maps[0])) > 1e-2
    given, given_maps = pool(params, given=X.mean(axis=1), query='given')
    np.testing.assert_allclose(given, summed, atol=1e-13)
    np.testing.assert_allclose(given_maps, maps, atol=1e-13)


def test_maps_follow_the_order_of_the_tokens_and_their_sums_do_not():
    params, order = parameters(), np.random.default_rng(3).permutation(T)
    summed, maps = pool(params)
    other, other_maps = pool(params, X[:, order])
    np.testing.assert_allclose(other_maps, maps[:, :, order], atol=1e-14)
    np.testing.assert_allclose(other, summed, atol=1e-14)


def test_tokens_that_are_all_alike_give_uniform_maps_and_themselves():
    x = np.broadcast_to(X[:, :1], X.shape)
    summed, maps = pool(parameters(), x, PADDED)
    lengths = np.sum(PADDED > 0, axis=1)
    expected = np.where(PADDED > 0, 1 / lengths[:, None], 0)
    np.testing.assert_allclose(maps, np.broadcast_to(expected[:, None], maps.shape), atol=1e-15)
    np.testing.assert_allclose(summed, np.broadcast_to(x[:, :1], summed.shape), atol=1e-14)


def gradients(params, heads=H):
    cfg = dataclasses.replace(CFG, heads=heads)

    def loss(params):
        return jnp.sum(jnp.sin(cfg.make().apply({'params': params}, jnp.asarray(X))[0]))

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))


def test_parameters_are_two_vectors_a_head_and_gradients_reach_both():
    def count(**fields):
        cfg = dataclasses.replace(CFG, **fields)
        params = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.ones((1, T, D)))
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count() == 2 * D * H
    assert count(query='learned') == D + 2 * D * H
    assert count(rank=3) == 3 * 2 * D * H
    assert count(learn_temperature=True) == 2 * D * H + 1
    assert count(project=True, output_size=24) == 2 * D * H + H * D * 24
    params = parameters()
    grads = gradients(params)
    for name in ('p_proj', 'q_proj'):
        assert np.all(np.any(np.abs(grads[name]['kernel']) > 1e-6, axis=0))
    grads = gradients(params | {'p_proj': {'kernel': np.zeros((D, H, 1))}})
    assert np.all(grads['q_proj']['kernel'] == 0) and np.any(grads['p_proj']['kernel'] != 0)
    one = gradients(parameters(heads=1), heads=1)  # f is a sign
    assert all(np.max(np.abs(leaf)) < 1e-12 for leaf in jax.tree.leaves(one))


def test_vectors_start_within_one_over_the_root_of_the_heads():
    params = CFG.make().init(jax.random.key(0), jnp.ones((1, T, D)))['params']
    for name in ('p_proj', 'q_proj'):
        kernel = np.abs(params[name]['kernel'].value)
        assert 0.95 * H**-0.5 < kernel.max() <= H**-0.5 and abs(kernel.mean() / (0.5 * H**-0.5) - 1) < 0.15


def test_a_low_temperature_makes_maps_sharp():
    params = parameters()
    _, published = pool(params)
    _, sharp = pool(params, temperature=0.05)
    _, learned = pool(params | {'log_temperature': np.log(0.05)}, learn_temperature=True)
    np.testing.assert_allclose(learned, sharp, atol=1e-13)
    np.testing.assert_allclose(
        np.log(sharp[..., 1:] / sharp[..., :1]) * 0.05, np.log(published[..., 1:] / published[..., :1]), atol=1e-12
    )
    assert published.max() < np.e**2 / (T - 1 + np.e**2) and sharp.max() > 0.8


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="query='max'"):
        LAMAConfig(query='max')
    with pytest.raises(ValueError, match='temperature=0.0'):
        LAMAConfig(temperature=0.0)
    with pytest.raises(ValueError, match='output_size=8'):
        LAMAConfig(project=False, output_size=8)
    for query, given in (('mean', jnp.ones((B, D))), ('given', None)):
        cfg = dataclasses.replace(CFG, query=query)
        with pytest.raises(ValueError, match=f"query='{query}'"):
            jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.ones((B, T, D)), Context(), given)
