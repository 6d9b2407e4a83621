"""LongHeads against its sheet: the method written out, chunk representatives, what is chosen and at which distance."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.nn.landmark_cache import LandmarkCache
from jattn.nn.longheads_cache import LongHeadsCache, representative
from tests.nn.block_caches import PACKED, WHOLE, B, H, T, assert_documents_are, compiled, draw, run, softmax, turn

W, N = 3, 4
CACHE = LongHeadsCache(chunk=W, chunks=N)


def written_out(cache, q, k, v):
    """The sheet, token by token and head by head, for one document; keys repeated for every query head."""
    w, n, scale = cache.chunk, cache.chunks, q.shape[-1] ** -0.5
    z = np.zeros_like(q)
    for h in range(q.shape[1]):
        representatives = []
        for t in range(len(q)):
            own = t // w
            if t % w == 0 and own:
                representatives.append(of_chunk(*(x[(own - 1) * w : own * w, h] for x in (q, k, v)), scale))
            numbers = list(range(own + 1))
            if own >= n:
                asks = turn(q[t, h], (n - 1) * w + t % w) if cache.rotate_selection_query else q[t, h]
                middle = sorted(range(1, own - 1), key=lambda c: -asks @ representatives[c])[: n - 3]
                numbers = sorted({0, own - 1, own, *middle})
            if cache.selection == 'last':
                numbers = list(range(max(0, own - n + 1), own + 1))
            tokens = [c * w + j for c in numbers for j in range(w) if c * w + j <= t]
            query = turn(q[t, h], len(tokens) - 1)
            scores = np.array([query @ turn(k[s, h], place) for place, s in enumerate(tokens)])
            z[t, h] = softmax(scale * scores) @ v[tokens, h]
    return z


def of_chunk(q, k, v, scale):
    q, k = (np.stack([turn(row, j) for j, row in enumerate(x)]) for x in (q, k))
    inside = np.stack([softmax(scale * k @ row) @ v for row in q])
    return softmax(scale * k @ np.mean(inside, axis=0)) @ k


@pytest.mark.parametrize('size', [None, 1, 7, T], ids=['whole', 'steps', 'calls', 'prefill'])
@pytest.mark.parametrize(
    'cache',
    [CACHE, LongHeadsCache(chunk=2, chunks=5, rotate_selection_query=True), LongHeadsCache(chunk=1, chunks=6)],
    ids=['published', 'rotated', 'single'],
)
def test_every_document_is_the_method_written_out_in_any_calls(cache, size):
    assert_documents_are(written_out, cache, size)


@pytest.mark.parametrize('size', [None, 1, 7], ids=['whole', 'steps', 'calls'])
@pytest.mark.parametrize('selection', ['top', 'random', 'last'])
def test_prefill_then_decoding_is_decoding_from_scratch(selection, size):
    cache = LongHeadsCache(chunk=W, chunks=N, selection=selection)
    arrays = draw()
    z, chosen, *_ = run(cache, arrays, size=size)
    call = compiled(cache)
    state = cache.init(B, T, *arrays[1].shape[2:], arrays[2].shape[-1], jnp.float32, heads=H)
    state, out = call(state, *(x[:, :29] for x in (*arrays, WHOLE)))
    parts = [out]
    for t in range(29, T):
        state, out = call(state, *(x[:, t : t + 1] for x in (*arrays, WHOLE)))
        parts.append(out)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts], axis=1), chosen)
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts], axis=1), z, atol=1e-5)
    assert call._cache_size() <= 7  # one program a length of call, whatever the token


def test_up_to_the_attended_length_it_is_the_unmodified_model():
    plain = SoftmaxConfig(width=32, key_heads=2)
    cfg = dataclasses.replace(plain, cache=CACHE)
    x = jax.random.normal(jax.random.key(0), (2, 2 * N * W, 32))
    variables = nn.unbox(jax.jit(plain.make().init)(jax.random.key(1), x))
    expected, _ = jax.jit(plain.make().apply)(variables, x)
    for state in (None, cfg.init_state(2, 2 * N * W, jnp.float32)):
        y, _ = jax.jit(cfg.make().apply)(variables, x, Context(), state)
        np.testing.assert_allclose(y[:, : N * W], expected[:, : N * W], atol=1e-5)
        assert np.all(np.max(np.abs(y - expected)[:, N * W + W :], axis=-1) > 1e-3)


def test_the_policy_adds_no_parameters():
    x = jnp.zeros((1, 4, 32))
    shapes = [
        jax.eval_shape(SoftmaxConfig(width=32, cache=cache).make().init, jax.random.key(0), x)
        for cache in (None, CACHE)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


def test_a_representative_is_a_convex_combination_of_the_rotated_keys():
    q, k, v = (x.astype(np.float64)[:, :3] for x in draw())
    with jax.enable_x64(True):
        c = np.asarray(representative(q, k, v))
        # With three keys of six channels the weights are unique.
        for row in range(B):
            for h in range(H):
                keys = k[row, :, h // 2]
                weights, *_ = np.linalg.lstsq(keys.T, c[row, h])
                assert np.all(weights > 0)
                np.testing.assert_allclose(np.sum(weights), 1, atol=1e-12)
                np.testing.assert_allclose(weights @ keys, c[row, h], atol=1e-12)
        same = np.broadcast_to(k[:, :1], k.shape)
        np.testing.assert_allclose(representative(q, same, v), np.repeat(k[:, 0], 2, axis=1), atol=1e-12)


def test_later_tokens_never_change_a_representative():
    arrays, call = draw(), compiled(CACHE)
    state = CACHE.init(B, T, 2, 6, 6, jnp.float32, heads=H)
    before, _ = call(state, *(x[:, :29] for x in (*arrays, WHOLE)))
    after, _ = call(before, *(x[:, 29:] for x in (*arrays, WHOLE)))
    closed = 29 // W
    np.testing.assert_array_equal(after.chunks[:, :closed], before.chunks[:, :closed])
    assert np.all(before.chunks[:, closed:] == 0) and np.all(np.any(after.chunks[:, closed : T // W] != 0, axis=-1))


@pytest.mark.parametrize('selection', ['top', 'random'])
def test_the_chosen_are_n_sorted_chunks_with_the_first_the_last_closed_and_the_open_one(selection):
    cache = dataclasses.replace(CACHE, selection=selection)
    _, chosen, distance, seen = run(cache, draw())
    for t in range(T):
        own = t // W
        for numbers in chosen[:, t].reshape(-1, N):
            real = numbers[numbers >= 0].tolist()
            assert real == sorted(set(real)) and real[-1] == own
            assert len(real) == min(own + 1, N)
            assert {0, max(own - 1, 0), own} <= set(real)
    assert np.all(distance < N * W) and np.all(distance >= 0) and np.max(distance) == N * W - 1
    assert np.all((seen == W) | (chosen < 0) | (chosen == np.arange(T)[None, :, None, None] // W))


def test_heads_choose_differently_and_an_unchosen_chunk_has_no_say():
    arrays = draw()
    z, chosen, *_ = run(CACHE, arrays)
    late = chosen[:, 6 * W :]
    assert np.any(late[:, :, :1] != late[:, :, 1:])
    changed = 4
    q, k, v = arrays
    v = v.copy()
    v[:, changed * W : (changed + 1) * W] += 1
    other, rechosen, *_ = run(CACHE, (q, k, v))
    # The chunk's values stand behind its own representative too: only who chooses the same both times is compared.
    same = np.all(chosen == rechosen, axis=-1)
    reads = np.any(chosen == changed, axis=-1)
    np.testing.assert_array_equal(other[same & ~reads], z[same & ~reads])
    assert np.sum(same & ~reads) > 100 and np.all(np.any(other != z, axis=-1)[same & reads])


def test_the_last_n_chunks_are_a_sliding_window_at_true_distances():
    z, *_ = run(LongHeadsCache(chunk=W, chunks=N, selection='last'), draw())
    q, k, v = draw()
    for t in (5, N * W, 25, T - 1):
        start = max(0, (t // W - N + 1) * W)
        for h in range(H):
            scores = [turn(q[0, t, h], t) @ turn(k[0, s, h // 2], s) for s in range(start, t + 1)]
            expected = softmax(np.array(scores) * q.shape[-1] ** -0.5) @ v[0, start : t + 1, h // 2]
            np.testing.assert_allclose(z[0, t, h], expected, atol=1e-5)


def test_random_chunks_are_spread_over_the_middle():
    tokens = 400
    arrays = draw(tokens=tokens)
    _, chosen, *_ = run(LongHeadsCache(chunk=1, chunks=4, selection='random'), arrays, np.ones((B, tokens), np.int32))
    middle = chosen[0, 100:, :, 1]
    share = middle / (np.arange(100, tokens)[:, None] - 1)
    # Uniform: mean 1/2 and deviation 1/sqrt(12), over 1200 draws.
    assert abs(np.mean(share) - 0.5) < 4 / np.sqrt(12 * share.size)
    assert abs(np.std(share) - 1 / np.sqrt(12)) < 0.02


def test_a_batch_of_packed_rows_reads_as_many_keys_as_its_documents_have():
    *_, seen = run(CACHE, draw(), PACKED)
    index = np.concatenate([np.arange(7), np.arange(33)])
    np.testing.assert_array_equal(
        np.sum(seen[1], axis=-1), np.broadcast_to(np.minimum(index + 1, (N - 1) * W + index % W + 1)[:, None], (T, H))
    )


@pytest.mark.parametrize('cache', [CACHE, LandmarkCache(block=4, retrieved=2)], ids=['longheads', 'landmark'])
def test_a_call_shorter_than_a_chunk_needs_no_state(cache):
    q, k, v = draw()
    z, *_ = run(cache, (q[:, :1], k[:, :1], v[:, :1]), WHOLE[:, :1])
    np.testing.assert_array_equal(z, np.repeat(v[:, :1], 2, axis=2))


def test_past_the_capacity_outputs_are_nan():
    cfg = SoftmaxConfig(width=32, cache=CACHE)
    x = jax.random.normal(jax.random.key(0), (1, 20, 32))
    variables = jax.jit(cfg.make().init)(jax.random.key(1), x)
    y, _ = jax.jit(cfg.make().apply)(variables, x, Context(), cfg.init_state(1, 15, jnp.float32))
    whole, _ = jax.jit(cfg.make().apply)(variables, x)
    np.testing.assert_allclose(y[:, :15], whole[:, :15], atol=1e-5)
    assert np.all(np.isnan(y[:, 15:]))


def test_taps_show_scores_pattern_and_what_was_chosen():
    cfg = SoftmaxConfig(width=32, cache=CACHE)
    x = jax.random.normal(jax.random.key(0), (1, 20, 32))
    variables = jax.jit(cfg.make().init)(jax.random.key(1), x)
    y, _ = cfg.make().apply(variables, x)
    (tapped, _), captured = cfg.make().apply(variables, x, mutable=['patterns'])
    np.testing.assert_allclose(tapped, y, atol=1e-6)
    patterns = captured['patterns']
    assert patterns['pattern'].shape == (1, 4, 20, N * W) and patterns['chosen'].shape == (1, 20, 4, N)
    np.testing.assert_allclose(np.sum(patterns['pattern'], axis=-1), 1, atol=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match='chunks=3 must be at least 4'):
        LongHeadsCache(chunks=3)
    with pytest.raises(ValueError, match="selection='best' must be one of top, last, random"):
        LongHeadsCache(selection='best')
    with pytest.raises(ValueError, match='chunk=3 times chunks=4 is 12 tokens, more than capacity=11 holds'):
        SoftmaxConfig(width=32, cache=CACHE).init_state(1, 11)
    with pytest.raises(ValueError, match='key_dim=6 and value_dim=5 must be equal'):
        CACHE.init(1, 100, 2, 6, 5, jnp.float32)
    with pytest.raises(ValueError, match='window=4 hides keys'):
        SoftmaxConfig(width=32, window=4, cache=CACHE)
    with pytest.raises(ValueError, match='causal=False hides keys'):
        SoftmaxConfig(width=32, causal=False, cache=CACHE)


@pytest.mark.parametrize('cache', [CACHE, LandmarkCache(block=4, retrieved=2)], ids=['longheads', 'landmark'])
def test_a_loop_of_steps_copies_the_cache_once_before_it_begins(cache):
    """Keys and values; a step that read the old cache beside the new one would copy both every time."""
    cfg = SoftmaxConfig(width=32, heads=4, cache=cache)
    x = jnp.zeros((1, 1, 32))
    variables = cfg.make().init(jax.random.key(0), x)

    def steps(state):
        return jax.lax.fori_loop(0, 5, lambda _, state: cfg.make().apply(variables, x, Context(), state)[1], state)

    program = jax.jit(steps).lower(cfg.init_state(1, 960, jnp.float32)).compile().as_text()
    assert len(re.findall(r'= f32\[1,960,4,8\]\S* copy\(', program)) <= 2
