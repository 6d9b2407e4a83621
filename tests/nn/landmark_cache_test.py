"""Retrieval by landmarks against its sheet: the authors' procedure written out, limits, positions, ties."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers import SoftmaxConfig
from jattn.nn.landmark_cache import LandmarkCache
from jattn.ops.softmax_attention.landmark import grouped_pattern
from tests.nn.block_caches import WHOLE, B, H, K, T, assert_documents_are, compiled, draw, run, softmax, turn

C, R = 4, 2
CACHE = LandmarkCache(block=C, retrieved=R)


def written_out(cache, q, k, v):
    """The authors' procedure for one document, chunk after chunk; with n > R blocks their positions, else true ones."""
    c, r, scale = cache.block, cache.retrieved, q.shape[-1] ** -0.5
    z = np.zeros_like(q)
    for start in range(0, len(q), cache.chunk):
        n = start // c
        chunk = range(start, min(start + cache.chunk, len(q)))
        shift = max(n - r - 1, 0) if cache.positions == 'stingy' else 0
        landmarks = [(max(m - shift, 0) if cache.positions == 'stingy' else m) * c + c - 1 for m in range(n)]
        turned = np.array([[turn(q[t, h], t - shift * c) for h in range(q.shape[1])] for t in chunk])
        scores = np.array([turn(k[m * c + c - 1], at) for m, at in enumerate(landmarks)])
        if n:
            scores = scale * np.einsum('thk,mhk->thm', turned, scores)
            chances = np.apply_along_axis(softmax, -1, scores)
            if cache.selection == 'heads':
                chances = np.broadcast_to(np.max(chances, axis=1, keepdims=True), chances.shape)
            if cache.selection == 'tokens':
                chances = np.broadcast_to(np.max(chances, axis=0, keepdims=True), chances.shape)
        for i, t in enumerate(chunk):
            for h in range(q.shape[1]):
                best = sorted(np.argsort(-chances[i, h])[:r]) if n else []
                keys = []  # (block, token, position)
                for s, m in enumerate(best):
                    slot = s + (m >= n - r) if cache.positions == 'stingy' and n > r else m
                    keys += [(m, m * c + j, slot * c + j) for j in range(c)]
                keys += [(s // c, s, s - shift * c) for s in range(n * c, t + 1)]
                z[t, h] = grouped(turned[i, h], k[:, h], v[:, h], keys, t // c, c, scale)
    return z


def grouped(query, k, v, keys, own, c, scale):
    scores = {s: scale * query @ turn(k[s], at) for _, s, at in keys}
    top = {('key', s): scores[s] for m, s, _ in keys if m == own and s % c < c - 1}
    top |= {('block', m): scores[s] for m, s, _ in keys if m < own and s % c == c - 1}
    out = np.zeros_like(query)
    for (kind, which), gate in zip(top, softmax(np.array(list(top.values())))):
        if kind == 'key':
            out += gate * v[which]
        else:
            inside = [s for m, s, _ in keys if m == which and s % c < c - 1]
            out += gate * softmax(np.array([scores[s] for s in inside])) @ v[inside]
    return out


@pytest.mark.parametrize(
    'cache, size',
    [
        (CACHE, None),
        (CACHE, 1),
        (CACHE, 7),
        (dataclasses.replace(CACHE, chunk=7), None),
        (dataclasses.replace(CACHE, chunk=7), 1),
        (dataclasses.replace(CACHE, selection='heads', retrieved=1), 7),
        (dataclasses.replace(CACHE, positions='true', retrieved=1, chunk=2), 7),
        (dataclasses.replace(CACHE, selection='tokens', chunk=6), None),
        (dataclasses.replace(CACHE, selection='tokens', positions='true', retrieved=3), 1),
    ],
    ids=lambda x: str(x) if not isinstance(x, LandmarkCache) else f'{x.selection}-{x.positions}-{x.chunk}',
)
def test_every_document_is_the_procedure_written_out_in_any_calls(cache, size):
    assert_documents_are(written_out, cache, size, grouped_pattern)


@pytest.mark.parametrize('chunk', [1, 5, 12, T])
def test_all_blocks_at_true_positions_are_the_dense_grouped_softmax_whatever_the_chunk(chunk):
    cache = LandmarkCache(block=C, retrieved=T // C, chunk=chunk, positions='true')
    arrays = draw()
    z, *_ = run(cache, arrays, pattern=grouped_pattern)
    q, k, v = (np.repeat(x[0], H // x.shape[2], axis=1) for x in arrays)
    for t in (0, 2, 3, 4, 22, 23, T - 1):
        for h in range(H):
            keys = [(s // C, s, s) for s in range(t + 1)]
            expected = grouped(turn(q[t, h], t), k[:, h], v[:, h], keys, t // C, C, K**-0.5)
            np.testing.assert_allclose(z[0, t, h], expected, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 6, 13])
def test_stingy_positions_never_reach_retrieved_plus_two_blocks_and_a_chunk(chunk):
    _, chosen, distance, seen = run(dataclasses.replace(CACHE, chunk=chunk), draw(), pattern=grouped_pattern)
    bound = (R + 2) * C + chunk
    assert np.all(distance >= 0) and np.max(distance) < bound
    # And the bound is tight to within the last token of a chunk.
    assert chunk > 1 or np.max(distance) == (R + 1) * C + C - 1
    # No query reads more than R blocks, the unfinished one and its chunk.
    assert np.max(np.sum(seen, axis=-1)) <= R * C + C - 1 + chunk
    # No block seems to stand upon another one.
    for at, there in zip(distance.reshape(-1, distance.shape[-1]), chosen.reshape(-1, chosen.shape[-1]) >= 0):
        assert np.all(np.diff(at[there]) <= -C)


def test_a_stored_block_outside_the_selection_has_no_say():
    arrays, call = draw(), compiled(CACHE, grouped_pattern)
    before = CACHE.init(B, T, 2, K, K, jnp.float32)
    before, _ = call(before, *(x[:, :29] for x in (*arrays, WHOLE)))
    rest = [x[:, 29:] for x in (*arrays, WHOLE)]
    _, (z, chosen, *_) = call(before, *rest)
    # Its landmark's key alone keeps it out.
    inside = slice(2 * C, 3 * C - 1)
    changed = before.replace(k=before.k.at[:, inside].add(3.0), v=before.v.at[:, inside].add(3.0))
    _, (other, rechosen, *_) = call(changed, *rest)
    np.testing.assert_array_equal(chosen, rechosen)
    reads = np.any(np.asarray(chosen) == 2, axis=-1)
    assert 0 < np.sum(reads) < reads.size
    np.testing.assert_array_equal(np.asarray(other)[~reads], np.asarray(z)[~reads])
    assert np.all(np.any(np.asarray(other) != np.asarray(z), axis=-1)[reads])


@pytest.mark.parametrize('size', [None, 1, 7])
def test_of_blocks_that_tie_the_later_are_read(size):
    q, k, v = draw()
    k = k.copy()
    k[:, C - 1 :: C] = k[:, C - 1 : C]  # the first layer: every landmark is the same key
    k[:, C - 1 :: C] *= 1 + 1e-6 * np.random.default_rng(0).normal(size=k[:, C - 1 :: C].shape).astype(np.float32)
    _, chosen, *_ = run(CACHE, (q, k, v), size=size, pattern=grouped_pattern)
    for t in range((R + 2) * C, T):
        old = t // C - R - 1  # the last of those that tie
        for numbers in chosen[:, t, :, :R].reshape(-1, R):
            tied = numbers[numbers <= old]
            np.testing.assert_array_equal(tied, np.arange(old - len(tied) + 1, old + 1))


def test_heads_choose_alone_or_as_one():
    for selection, alike in (('token_and_head', False), ('heads', True), ('tokens', False)):
        _, chosen, *_ = run(dataclasses.replace(CACHE, selection=selection, chunk=6), draw(), pattern=grouped_pattern)
        assert np.all(chosen == chosen[:, :, :1]) == alike
        of_chunk = chosen[:, 24:30, :, :R]
        assert np.all(of_chunk == of_chunk[:, :1]) == (selection == 'tokens')


def test_any_softmax_mixer_runs_with_it():
    """Its softmax is then an ordinary one, over what was retrieved."""
    z, chosen, *_ = run(CACHE, draw())
    assert np.all(np.isfinite(z)) and np.max(chosen) == T // C - 1
    assert SoftmaxConfig(width=32, cache=CACHE).init_state(1, 38).k.shape == (1, 40, 4, 8)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match='block=1 must be at least 2'):
        LandmarkCache(block=1)
    with pytest.raises(ValueError, match='retrieved=0 must be at least 1'):
        LandmarkCache(retrieved=0)
    with pytest.raises(ValueError, match="selection='all' must be one of token_and_head, heads, tokens"):
        LandmarkCache(selection='all')
    with pytest.raises(ValueError, match="positions='kept' must be one of stingy, true"):
        LandmarkCache(positions='kept')
    with pytest.raises(
        ValueError, match='retrieved=3 blocks are more than the 2 of block=4 tokens that capacity=8 holds'
    ):
        LandmarkCache(block=C, retrieved=3).init(1, 8, 2, K, K, jnp.float32)
