"""Aaren against softmax attention of one query over every prefix, written out; its operator; its forms; its cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.aaren import EMPTY, AarenConfig, Stretch, chunked, join, scanned, single
from jattn.mixers.softmax import SoftmaxConfig
from jattn.ops import attention
from jattn.taps import Edit
from tests.mixers.packed import assert_calls_are

B, T, H, V = 2, 21, 4, 8
CFG = AarenConfig(width=32, heads=H, chunk=8)
X = jax.random.normal(jax.random.key(0), (B, T, 32))
PACKED = np.array([[0] * 2 + [3] * 9 + [0] + [4] * 9, [1] * 5 + [2] * 16], np.int32)
FORMS = {'scan': scanned, 'chunks': functools.partial(chunked, chunk=8, implementation=None)}


@functools.cache
def parameters(cfg=CFG):
    return nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), X))['params']


@functools.cache
def sums_of(form):
    """The compiled averages `(scores, v, segments) -> o` of a form, from an empty past."""

    @jax.jit
    def run(scores, v, segments):
        sums, _ = FORMS[form](single(scores, v, segments), segments, CFG.init_state(B, 1).past)
        return sums[..., :-1] / jnp.where(sums[..., -1:] > 0, sums[..., -1:], 1)

    return run


def direct(scores, v, segments=None):
    """Softmax attention over every prefix of a document, one query, in the dtype of its arrays."""
    segments = np.ones((B, T), np.int32) if segments is None else segments
    seen = np.tril(segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[..., None], scores[:, None], -1e30), axis=2)
    return jnp.einsum('btsh,bshv->bthv', weights * seen[..., None], v)


def scores_and_values(size=1.0):
    scores, v = jax.random.normal(jax.random.key(2), (B, T, H)), jax.random.normal(jax.random.key(3), (B, T, H, V))
    return size * scores, v


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [1.0, 200.0], ids=['usual', 'huge'])
@pytest.mark.parametrize('order', ['random', 'rising', 'falling'])
def test_both_forms_are_softmax_attention_over_every_prefix(form, size, order):
    """With rising scores every token is a new maximum: what was added before it must be scaled down again."""
    scores, v = scores_and_values(size)
    if order != 'random':
        scores = jnp.sort(scores, axis=1, descending=order == 'falling')
    np.testing.assert_allclose(sums_of(form)(scores, v, None), direct(scores, v), atol=1e-5)
    np.testing.assert_allclose(sums_of(form)(scores, v, PACKED), direct(scores, v, PACKED), atol=1e-5)


def test_the_layer_is_its_equations_and_its_last_token_is_ordinary_attention_of_one_query():
    p = parameters()
    y, _ = jax.jit(CFG.make().apply)({'params': p}, X)
    query = jnp.einsum('d,dhk->hk', p['query'], p['q_proj']['kernel'])
    k, v = (jnp.einsum('btd,dhk->bthk', X, p[f'{name}_proj']['kernel']) for name in 'kv')
    z = direct(jnp.einsum('bthk,hk->bth', k, query) / V**0.5, v)
    np.testing.assert_allclose(y, jnp.einsum('bthv,hvd->btd', z, p['o_proj']['kernel']), atol=1e-5)
    last = attention(jnp.broadcast_to(query[None, None], (B, 1, H, V)), k, v)
    np.testing.assert_allclose(z[:, -1:], last, atol=1e-5)
    folded = {name: p[name] for name in ('k_proj', 'v_proj', 'o_proj')} | {'query': query}
    other, _ = jax.jit(dataclasses.replace(CFG, fold_query=True).make().apply)({'params': folded}, X)
    np.testing.assert_allclose(other, y, atol=1e-5)


def test_the_query_and_its_projection_are_all_that_a_layer_has_beside_softmax_attention():
    """The paper's overhead: one vector of the width a layer."""

    def count(cfg):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(cfg.make().init, jax.random.key(0), X)))

    assert count(CFG) - count(SoftmaxConfig(width=32, heads=H)) == 32
    assert count(dataclasses.replace(CFG, fold_query=True)) == count(CFG) - 32 * 32


def test_the_first_output_is_the_first_value_exactly():
    _, captured = jax.jit(functools.partial(CFG.make().apply, mutable=['taps']))({'params': parameters()}, X[:, :1])
    np.testing.assert_array_equal(captured['taps']['z'], captured['taps']['v'])


def test_keys_that_are_all_alike_give_the_running_mean_of_the_values():
    variables = {'params': parameters(), 'edits': {'k': Edit(value=jnp.ones(V))}}
    _, captured = jax.jit(functools.partial(CFG.make().apply, mutable=['taps']))(variables, X)
    v = np.asarray(captured['taps']['v'])
    np.testing.assert_allclose(
        captured['taps']['z'], np.cumsum(v, 1) / np.arange(1, T + 1)[None, :, None, None], atol=1e-5
    )


def stretches(count):
    keys = jax.random.split(jax.random.key(4), 2)
    maxima = 30 * jax.random.normal(keys[0], (count, 50, H))
    return [Stretch(m, u) for m, u in zip(maxima, jax.random.normal(keys[1], (count, 50, H, V + 1)))]


def assert_same(a, b):
    np.testing.assert_array_equal(a.maximum, b.maximum)
    np.testing.assert_allclose(a.sums, b.sums, rtol=1e-5, atol=1e-6)


def test_the_operator_is_associative_and_an_empty_stretch_changes_nothing():
    a, b, c = stretches(3)
    assert_same(join(join(a, b), c), join(a, join(b, c)))
    empty = Stretch(jnp.full_like(a.maximum, EMPTY), jnp.zeros_like(a.sums))
    for joined in (join(a, empty), join(empty, a)):
        assert_same(joined, a)
    assert_same(join(empty, empty), empty)


@pytest.mark.parametrize('chunk', [1, 7, 64, None])
def test_chunks_of_any_size_and_any_split_give_the_same_outputs(chunk):
    cfg, variables = dataclasses.replace(CFG, chunk=chunk), {'params': parameters()}
    expected, _ = jax.jit(CFG.make().apply)(variables, X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(expected, cfg, variables, X, PACKED, size=7)


@pytest.mark.parametrize('form', FORMS)
def test_gradients_are_those_of_the_direct_form(form):
    with jax.enable_x64(True):
        scores, v = (np.asarray(x, np.float64) for x in scores_and_values(3.0))
        weights = np.random.default_rng(0).normal(size=v.shape)

        def loss(sums):
            return lambda scores, v: jnp.sum(weights * jnp.sin(sums(scores, v, PACKED)))

        ours = jax.jit(jax.grad(loss(sums_of(form)), (0, 1)))(scores, v)
        for own, exact in zip(ours, jax.grad(loss(direct), (0, 1))(scores, v)):
            np.testing.assert_allclose(own, exact, atol=1e-12)
        assert np.all(np.any(ours[0] != 0, axis=(0, 1)))


def test_scores_far_above_what_an_exponential_holds_stay_finite_in_value_and_gradient():
    scores, v = scores_and_values(1e4)
    for form in FORMS:
        value, grad = jax.jit(jax.value_and_grad(lambda s, run=sums_of(form): jnp.sum(run(s, v, None))))(scores)
        assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_the_state_is_h_times_v_plus_two_numbers_whatever_the_length():
    assert CFG.state_bytes(10) == CFG.state_bytes(10**6) == 4 * H * (V + 2) + 8  # and the cursor


def temporaries(cfg, tokens):
    mixer, x = cfg.make(), jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda variables, x: jnp.sum(mixer.apply(variables, x)[0])))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_linearly_and_that_of_attention_over_pairs_quadratically():
    growth = lambda cfg: temporaries(cfg, 1024) / temporaries(cfg, 256)
    assert growth(AarenConfig(width=32)) < 4.5
    assert growth(SoftmaxConfig(width=32, implementation='reference')) > 12
