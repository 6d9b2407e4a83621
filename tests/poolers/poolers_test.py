"""Every law of the pooler contract (jattn/poolers/pooler.py) for every entry of POOLERS, and for variants of fields.

Parameters are those of init plus 0.02 normal. One compiled program an entry, in float64, gives vectors, maps and
gradients; every test but that of bfloat16 reads it.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.poolers import POOLERS
from jattn.poolers.attentive import AdditiveConfig, AIMConfig, SimPoolConfig
from jattn.poolers.efficient_probing import EfficientProbingConfig
from jattn.poolers.lama import LAMAConfig
from tests.poolers.published_poolers import PUBLISHED

VARIANTS = {
    'abmilp[relu,hidden]': AdditiveConfig(use_bias=True, activation='relu', hidden=8),
    'aim[queries]': AIMConfig(queries=2),
    'simpool[gamma]': SimPoolConfig(gamma=1.25),
    'simpool[no_linears]': SimPoolConfig(linears=False, heads=12),
    'efficient_probing[d_out]': EfficientProbingConfig(d_out=2),
    'lama[learned,rank,temperature]': LAMAConfig(query='learned', rank=2, learn_temperature=True, output_size=24),
    'lama[unprojected]': LAMAConfig(project=False),
}
ENTRIES = {name: cfg.tiny() for name, cfg in (POOLERS | VARIANTS).items()}
B, T, D = 2, 16, 32
X = np.random.default_rng(0).normal(size=(B, T, D))
ALL = np.ones((B, T), np.int32)
# Eight real tokens a row (for CBAM two lines of four), with padding on both sides and on one.
PADDED = np.array([[0] * 3 + [7] * 8 + [0] * 5, [0] * 8 + [2] * 8], np.int32)
REAL = PADDED > 0


def over(names):
    return pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names])


entries = over(ENTRIES)


@functools.cache
def boxed_variables(name):
    return jax.jit(ENTRIES[name].make().init)(jax.random.key(0), jnp.float32(X))


@functools.cache
def variables_of(name):
    """Float64, params moved."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nn.unbox(dict(boxed_variables(name))))
    random = np.random.default_rng(1)
    moved = jax.tree.map(lambda p: p + 0.02 * random.normal(size=p.shape), variables.pop('params', {}))
    return {'params': moved, **variables}


@functools.cache
def program(name):
    pooler, variables = ENTRIES[name].make(), dict(variables_of(name))
    params = variables.pop('params')

    @jax.jit
    def run(tokens, segments):
        def loss(params, tokens):
            vec, maps = pooler.apply({'params': params, **variables}, tokens, Context(segments=segments))
            return jnp.sum(jnp.sin(vec)), (vec, maps)

        grads, (vec, maps) = jax.grad(loss, (0, 1), has_aux=True)(params, tokens)
        return vec, maps, grads

    return run


def run(name, tokens=X, segments=ALL):
    """vec, maps and the gradients of (params, tokens)."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, program(name)(tokens, segments))


def plain(name, tokens):
    """vec and maps without jit and without segments."""
    with jax.enable_x64(True):
        vec, maps = ENTRIES[name].make().apply(variables_of(name), jnp.asarray(tokens))
        return np.asarray(vec), None if maps is None else np.asarray(maps)


def with_padding(value):
    """The first eight tokens of each row where PADDED has them, `value` elsewhere."""
    tokens = np.full_like(X, value)
    tokens[REAL] = X[:, :8].reshape(-1, D)
    return tokens


def assert_close(a, b, atol=1e-11):
    assert (a is None) == (b is None)
    if b is not None:
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@entries
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes_are_those_of_the_config(name, dtype):
    cfg = ENTRIES[name]
    shapes = jax.eval_shape(cfg.make().apply, variables_of(name), jax.ShapeDtypeStruct((B, T, D), dtype))
    vec, maps = shapes
    assert (vec.shape, vec.dtype) == ((B, cfg.vector_size), dtype)
    assert (maps is None) == (cfg.maps == 0)
    assert maps is None or (maps.shape, maps.dtype) == ((B, cfg.maps, T), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(boxed_variables(name)))


@entries
def test_jit_and_segments_of_one_document_change_nothing(name):
    vec, maps, _ = run(name)
    for ours, other in zip((vec, maps), plain(name, X)):
        assert_close(ours, other)


@entries
def test_padding_changes_nothing_whatever_its_values(name):
    vec, maps, (params, tokens) = run(name, with_padding(np.nan), PADDED)
    alone, alone_maps = plain(name, X[:, :8])
    assert_close(vec, alone)
    if maps is not None:
        assert_close(np.stack([own[:, real] for own, real in zip(maps, REAL)]), alone_maps)
    _, _, (other, _) = run(name, with_padding(3.0), PADDED)
    for own, same in zip(jax.tree.leaves(params), jax.tree.leaves(other)):
        assert_close(own, same, atol=1e-9 * max(np.max(np.abs(same)), 1))
    assert np.all(tokens[~REAL] == 0) and np.all(np.isfinite(tokens))


@entries
def test_maps_are_distributions_over_the_real_tokens(name):
    _, maps, _ = run(name, with_padding(np.nan), PADDED)
    if maps is None:
        return
    assert np.all(maps >= 0) and np.all(maps[:, :, 0] == 0)
    assert np.all(np.moveaxis(maps, 1, 2)[~REAL] == 0)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-12)


@entries
def test_order_counts_only_where_the_config_says_so(name):
    order = np.random.default_rng(3).permutation(T)
    vec, maps, _ = run(name)
    other, other_maps, _ = run(name, X[:, order])
    if ENTRIES[name].ordered:
        assert np.max(np.abs(vec - other)) > 1e-4
    else:
        assert_close(other, vec)
        assert_close(other_maps, None if maps is None else maps[:, :, order])


@entries
def test_bfloat16_is_finite_and_near(name):
    tokens = with_padding(np.inf)
    apply = jax.jit(ENTRIES[name].make().apply)
    variables = jax.tree.map(jnp.float32, variables_of(name))
    vec, maps = apply(variables, jnp.bfloat16(tokens), Context(segments=jnp.array(PADDED)))
    exact, exact_maps, _ = run(name, tokens, PADDED)
    np.testing.assert_allclose(np.float64(vec), exact, atol=0.1 * np.max(np.abs(exact)))
    if maps is not None:
        np.testing.assert_allclose(maps, exact_maps, atol=0.05)


@entries
def test_every_parameter_gets_a_finite_gradient(name):
    _, _, (params, tokens) = run(name)
    for path, grad in jax.tree_util.tree_leaves_with_path(params):
        assert np.all(np.isfinite(grad))
        # In float64 a gradient that is nothing but rounding is below 1e-14.
        assert np.max(np.abs(grad)) > 1e-6, f'no gradient reaches {jax.tree_util.keystr(path)}'
    assert np.all(np.isfinite(tokens)) and np.all(np.any(tokens != 0, axis=(1, 2)))


@entries
def test_every_parameter_has_logical_names(name):
    for box in jax.tree.leaves(boxed_variables(name), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == box.value.ndim
        assert len(set(box.names)) == len(box.names)


@entries
def test_it_is_the_published_pooler(name):
    published = PUBLISHED.get(name.split('[')[0])
    if published is None or 'relu' in name:
        return  # efficient probing and LAMA have files of their own
    params = variables_of(name)['params']
    vec, maps, _ = run(name)
    for row in range(B):
        expected, expected_maps = published(params, X[row], ENTRIES[name])
        assert_close(vec[row], expected)
        assert_close(None if maps is None else maps[row], expected_maps)


@entries
def test_a_wrong_context_shape_is_named(name):
    with pytest.raises(ValueError, match=r'context.segments has shape \(2, 5\)'):
        jax.eval_shape(ENTRIES[name].make().apply, variables_of(name), X, Context(segments=jnp.ones((2, 5), jnp.int32)))


def test_no_two_entries_are_alike_and_configs_are_hashable():
    configs = [*POOLERS.values(), *VARIANTS.values()]
    assert len(set(configs)) == len(configs)
    for a, b in itertools.combinations(configs, 2):
        assert a != b


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match='width is None'):
        _ = POOLERS['mean'].vector_size
    with pytest.raises(ValueError, match='width=32 must be a multiple of heads=12'):
        AIMConfig(width=32).make().init(jax.random.key(0), jnp.ones((1, 2, 32)))
    with pytest.raises(ValueError, match="activation='gelu'"):
        AdditiveConfig(activation='gelu')
    with pytest.raises(ValueError, match='gamma=-1.0'):
        SimPoolConfig(gamma=-1.0)
