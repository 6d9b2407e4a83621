"""Landmark attention against its sheet: the grouped softmax, its limits, its block form, landmarks given or counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.nn.cache import RingCache
from jattn.nn.landmark_cache import LandmarkCache
from jattn.nn.longheads_cache import LongHeadsCache
from jattn.ops.softmax_attention.landmark import landmark_attention, landmark_mask, landmark_pattern
from tests.marks import slow_where
from tests.mixers.packed import DOCUMENTS, PACKED, X, parameters

B, T, H, G, K, V, C = 2, 23, 4, 2, 6, 5, 4
CFG = LandmarkConfig(width=32, heads=4, key_heads=2, block=C)
SEGMENTS = np.array([[0] * 2 + [3] * 9 + [0] + [4] * 11, [1] * 5 + [2] * 18], np.int32)
RANDOM = np.random.default_rng(0)
SCORES = 2 * RANDOM.normal(size=(1, H, T, T))
GRID = np.broadcast_to((np.arange(T) + 1) % C == 0, (1, T))
OWN = np.arange(T)[None]
CAUSAL = landmark_mask(None, OWN, T)


@jax.jit
def grid_pattern(scores):
    return landmark_pattern(scores, CAUSAL, jnp.array(GRID), None, OWN)


def pattern_of(scores):
    with jax.enable_x64(True):
        return np.asarray(grid_pattern(scores))


def softmax_over(scores, seen):
    weights = np.where(seen, np.exp(scores - np.max(np.where(seen, scores, -np.inf), axis=-1, keepdims=True)), 0)
    return weights / np.sum(weights, axis=-1, keepdims=True)


def test_it_is_the_definition_written_out():
    pattern = pattern_of(SCORES)
    for t in range(T):
        for h in range(H):
            a, own, expected = np.exp(SCORES[0, h, t]), t // C, np.zeros(T)
            top = [s for s in range(t + 1) if (s // C == own) != (s % C == C - 1)]
            for s in top:
                gate = a[s] / np.sum(a[top])
                inside = [s] if s // C == own else range(s - C + 1, s)
                expected[inside] += gate * a[inside] / np.sum(a[inside])
            np.testing.assert_allclose(pattern[0, h, t], expected, atol=1e-14)


def test_rows_sum_to_one_landmarks_get_nothing_and_the_future_exactly_zero():
    pattern = pattern_of(SCORES)
    np.testing.assert_allclose(np.sum(pattern, axis=-1), 1, atol=1e-14)
    assert np.all(pattern[..., GRID[0]] == 0)
    assert np.all(pattern[..., ~np.asarray(CAUSAL[0])] == 0)
    assert np.all((pattern > 0) == np.asarray(CAUSAL)[:, None] & ~GRID[:, None, None])


def test_a_landmark_that_scores_its_block_s_sum_gives_plain_attention_over_ordinary_tokens():
    scores = SCORES.copy()
    for last in range(C - 1, T, C):
        scores[..., last] = np.log(np.sum(np.exp(scores[..., last - C + 1 : last]), axis=-1))
    ordinary = np.tril(np.ones((T, T), bool)) & ~GRID
    np.testing.assert_allclose(pattern_of(scores), softmax_over(scores, ordinary), atol=1e-14)


@pytest.mark.parametrize('size', [None, 7, 1], ids=['whole', 'calls', 'steps'])
def test_without_landmarks_it_is_plain_causal_attention(size):
    params, segments = parameters(CFG), jnp.array(PACKED)
    plain = SoftmaxConfig(width=32, heads=4, key_heads=2)
    expected, _ = jax.jit(plain.make().apply)({'params': params}, X, Context(segments=segments))
    y = in_calls(CFG, size, np.zeros_like(PACKED, bool))
    np.testing.assert_allclose(y[PACKED > 0], np.asarray(expected)[PACKED > 0], atol=1e-5)


def test_shut_gates_leave_the_own_block_and_one_open_gate_leaves_its_block():
    t, s = np.mgrid[:T, :T]
    ordinary = (s <= t) & ~GRID[0]
    shut = np.where(GRID[:, None, None], -1e30, SCORES)
    own = ordinary & (s // C == t // C)
    np.testing.assert_allclose(pattern_of(shut), softmax_over(SCORES, own), atol=1e-14)
    opened = SCORES.copy()
    opened[..., 2 * C - 1] = 1e4
    inside = np.where(t >= 2 * C, ordinary & (s // C == 1), False)
    late = pattern_of(opened)[:, :, 2 * C :]
    np.testing.assert_allclose(late, softmax_over(SCORES, inside | (t < 2 * C))[:, :, 2 * C :], atol=1e-14)


def test_a_block_of_a_landmark_alone_keeps_its_share_and_who_sees_nothing_has_a_row_of_zeros():
    scores = np.zeros((1, 1, 4, 4))
    marks = jnp.array([[True, True, False, False]])
    with jax.enable_x64(True):
        pattern = landmark_pattern(scores, landmark_mask(None, OWN[:, :4], 4), marks, None, OWN[:, :4])
    # Query 0 is a landmark alone; 1 one behind an empty block; 2 sees two empty blocks and itself.
    np.testing.assert_allclose(pattern[0, 0], [[0] * 4, [0] * 4, [0, 0, 1 / 3, 0], [0, 0, 1 / 4, 1 / 4]], atol=1e-14)


@functools.cache
def value_and_gradients(implementation, segmented, tile):
    weights = np.random.default_rng(1).normal(size=(B, T, H, V))

    def loss(q, k, v, landmarks, segments):
        options = dict(segments=(segments,) * 2 if segmented else None, tile=tile, implementation=implementation)
        return jnp.sum(weights * jnp.sin(landmark_attention(q, k, v, landmarks, **options)))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


# Which landmarks, whether documents are packed, tokens of a tile; of each pair of the last two one form is quick.
FORMS = [(marks, *form) for marks in ('grid', 'random') for form in ((True, C), (True, 3), (False, C), (False, 64))]
QUICK = {('grid', True, C), ('random', True, 3), ('random', False, C), ('grid', False, 64)}


@pytest.mark.parametrize('form', slow_where(lambda form: form not in QUICK, FORMS))
def test_the_block_form_is_the_reference_in_value_and_gradient(form):
    landmarks, segmented, tile = form
    random = np.random.default_rng(2)
    marks = np.broadcast_to(GRID, (B, T)) if landmarks == 'grid' else random.random((B, T)) < 0.3
    with jax.enable_x64(True):
        arrays = [3 * random.normal(size=shape) for shape in ((B, T, H, K), (B, T, G, K), (B, T, G, V))]
        call = *arrays, jnp.array(marks), jnp.array(SEGMENTS)
        value, gradients = value_and_gradients('xla', segmented, tile)(*call)
        expected, exact = value_and_gradients('reference', segmented, C)(*call)
        np.testing.assert_allclose(value, expected, atol=1e-12)
        for own, other in zip(gradients, exact):
            np.testing.assert_allclose(own, other, atol=1e-12)
            assert np.all(np.any(own != 0, axis=(1, 3)))


def test_scores_far_above_what_an_exponential_holds_stay_finite_in_value_and_gradient():
    random = np.random.default_rng(3)
    with jax.enable_x64(True):
        arrays = [random.normal(size=shape) for shape in ((B, T, H, K), (B, T, G, K), (B, T, G, V))]
        arrays[0] *= 1e4
        call = *arrays, jnp.array(np.broadcast_to(GRID, (B, T))), jnp.array(SEGMENTS)
        for implementation in ('xla', 'reference'):
            value, gradients = value_and_gradients(implementation, True, C)(*call)
            assert np.isfinite(value) and all(np.all(np.isfinite(gradient)) for gradient in gradients)


def temporaries(tokens):
    shapes = ((1, tokens, 2, 8), (1, tokens, 2, 8), (1, tokens, 2, 8))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    landmarks = jax.ShapeDtypeStruct((1, tokens), bool)

    def loss(q, k, v, landmarks):
        return jnp.sum(landmark_attention(q, k, v, landmarks, tile=16, implementation='xla') ** 2)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, landmarks).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_block_form_takes_memory_linear_in_the_length():
    assert temporaries(2048) / temporaries(512) < 5


def in_calls(cfg, size, landmarks=None):
    """The outputs of the packed rows whole (None) or in calls of `size` tokens."""
    apply, variables = jax.jit(cfg.make().apply), {'params': parameters(cfg)}

    def context(part):
        marks = None if landmarks is None else jnp.array(landmarks[:, part])
        return Context(segments=jnp.array(PACKED[:, part]), landmarks=marks)

    if size is None:
        return np.asarray(apply(variables, X, context(slice(None)))[0])
    state, parts = cfg.init_state(2, X.shape[1], jnp.float32), []
    for start in range(0, X.shape[1], size):
        part = slice(start, start + size)
        y, state = apply(variables, X[:, part], context(part), state)
        parts.append(y)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize('size', [None, 7, 1], ids=['whole', 'calls', 'steps'])
def test_landmarks_are_counted_from_the_start_of_each_document_unless_they_are_given(size):
    counted = in_calls(CFG, size)
    grid, other = np.zeros_like(PACKED, bool), np.random.default_rng(4).random(PACKED.shape) < 0.3
    for row, start, end in DOCUMENTS:
        grid[row, start + C - 1 : end : C] = True
    real = PACKED > 0
    np.testing.assert_allclose(in_calls(CFG, size, grid)[real], counted[real], atol=1e-5)
    given = in_calls(CFG, size, other)[real]
    np.testing.assert_allclose(given, in_calls(CFG, None, other)[real], atol=1e-5)
    assert np.max(np.abs(given - counted[real])) > 1e-2


def test_the_layer_is_its_equations():
    y = in_calls(CFG, None)
    p = parameters(CFG)
    for row, start, end in DOCUMENTS:
        x, tokens = X[row : row + 1, start:end], end - start
        q, k, v = (jnp.einsum('btd,dhk->bthk', x, p[f'{name}_proj']['kernel']) for name in 'qkv')
        angle = np.arange(tokens)[:, None] * 10_000.0 ** (-np.arange(4) / 4)
        cos, sin = (f(angle)[None, :, None] for f in (np.cos, np.sin))
        turned = [
            np.concatenate([a * cos - b * sin, b * cos + a * sin], -1) for a, b in (np.split(z, 2, -1) for z in (q, k))
        ]
        scores = np.einsum('bthk,bshk->bhts', turned[0], np.repeat(turned[1], 2, 2)) * 8**-0.5
        full = np.full((1, 4, T, T), -1e30)
        full[..., :tokens, :tokens] = scores
        pattern = pattern_of(full)[..., :tokens, :tokens]
        z = np.einsum('bhts,bshv->bthv', pattern, np.repeat(v, 2, 2))
        np.testing.assert_allclose(
            y[row, start:end], np.einsum('bthv,hvd->btd', z, p['o_proj']['kernel'])[0], atol=1e-4
        )


def test_retrieval_of_all_blocks_at_true_positions_is_the_dense_layer():
    cache = LandmarkCache(block=C, retrieved=4, positions='true')
    dense = in_calls(CFG, None)
    for size in (None, 1, 7):
        y = in_calls(dataclasses.replace(CFG, cache=cache), size)
        np.testing.assert_allclose(y[PACKED > 0], dense[PACKED > 0], atol=1e-5)


def test_fewer_blocks_read_something_else():
    y = in_calls(dataclasses.replace(CFG, cache=LandmarkCache(block=C, retrieved=1, positions='true')), None)
    early = np.array([[t - start < 2 * C for t in range(13)] for start in (7, 5)])  # one block to retrieve at most
    dense = in_calls(CFG, None)
    last = np.max(PACKED, axis=1, keepdims=True) == PACKED
    np.testing.assert_allclose(y[last & early], dense[last & early], atol=1e-5)
    assert np.all(np.max(np.abs(y - dense)[~early & last], axis=-1) > 1e-4)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(block=1), 'block=1 must be at least 2'),
        (dict(window=4), 'window=4 does not go with landmarks: window must be None'),
        (dict(softcap=5.0), 'softcap=5.0 does not go with landmarks'),
        (dict(causal=False), 'causal=False does not go with landmarks'),
        (dict(cache=LandmarkCache(block=8)), 'cache.block=8 must be the block=16 of the landmarks'),
        (dict(cache=LongHeadsCache()), 'must be a LandmarkCache or a PlainCache'),
        (dict(cache=RingCache(window=4)), 'must be a LandmarkCache or a PlainCache'),
        (dict(implementation='cudnn'), "implementation='cudnn' must be one of"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LandmarkConfig(width=32, **fields)


def test_landmarks_that_do_not_fit_are_named():
    variables = {'params': parameters(CFG)}
    with pytest.raises(ValueError, match=r'context.landmarks has shape \(2, 5\)'):
        CFG.make().apply(variables, X, Context(landmarks=jnp.zeros((2, 5), bool)))
    cfg = dataclasses.replace(CFG, cache=LandmarkCache(block=C, retrieved=1))
    with pytest.raises(ValueError, match='a LandmarkCache has a landmark every `block` tokens'):
        cfg.make().apply(variables, X, Context(landmarks=jnp.zeros((2, 13), bool)))
    with pytest.raises(ValueError, match='retrieved=1 blocks are more than the 0'):
        cfg.init_state(1, 0)
