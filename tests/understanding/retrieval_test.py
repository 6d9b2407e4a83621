"""Retrieval scores: hand-made patterns, kept rows, padding, models of several forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.understanding import capture
from jattn.understanding.retrieval import RetrievalScores, hits, score_retrieval

TOKENS = jnp.array([9, 4, 5, 6, 9, 1, 4, 5, 6])
NEEDLE = jnp.array([0, 1, 1, 1, 0, 0, 0, 0, 0], bool)
ANSWER = jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], bool)
MODEL = DecoderConfig(
    width=32, layers=3, read_in='tokens', input_size=11, output_size=11, mixer=(SoftmaxConfig(heads=4, key_heads=2),)
)
MODELS = {
    'scanned': MODEL,
    'unrolled': dataclasses.replace(MODEL, scan=False),
    'hybrid': dataclasses.replace(MODEL, mixer=(MIXERS['rg_lru'], SoftmaxConfig(heads=4))),
}


def looking_at(places):
    """A pattern whose queries 5, 6, 7 look at these places."""
    return jnp.zeros((9, 9)).at[jnp.array([5, 6, 7]), jnp.array(places)].set(1.0)


def test_a_head_that_looks_at_the_token_to_be_written_scores_one_and_one_off_scores_zero():
    uniform = jnp.tril(jnp.ones((9, 9))) / jnp.arange(1, 10)[:, None]
    patterns = jnp.stack([looking_at([1, 2, 3]), looking_at([2, 3, 4]), looking_at([0, 1, 2]), uniform])
    assert hits(patterns, TOKENS, NEEDLE, ANSWER).tolist() == [1, 0, 0, 0]


def test_the_same_token_elsewhere_is_no_hit_and_a_part_counts_as_a_part():
    np.testing.assert_allclose(hits(looking_at([1, 2, 0])[None], TOKENS, NEEDLE, ANSWER), [2 / 3])
    elsewhere = NEEDLE.at[1].set(False)
    np.testing.assert_allclose(hits(looking_at([1, 2, 3])[None], TOKENS, elsewhere, ANSWER), [1.0])


def test_a_token_that_is_copied_twice_counts_twice_or_once():
    tokens = TOKENS.at[7].set(4)
    twice = looking_at([1, 1, 0])[None]
    np.testing.assert_allclose(hits(twice, tokens, NEEDLE, ANSWER), [2 / 3])
    np.testing.assert_allclose(hits(twice, tokens, NEEDLE, ANSWER, distinct=True), [1 / 3])


def start(cfg):
    return nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), TOKENS[None]))['params']


def rows(cfg, params):
    """Two rows; the answer of the first is what the model says, so it is kept, that of the second is not."""
    said = lambda row: int(jnp.argmax(cfg.make().apply({'params': params}, row[None])[0][0, -1]))
    first = TOKENS[:6]
    for _ in range(3):
        first = jnp.append(first, said(first))
    first = first.at[1:4].set(first[6:])
    for n in range(6, 9):  # the needle has changed: what the model says of it may have too
        first = first.at[n].set(said(first[:n]))
    second = first.at[6:].set((first[6:] + 1) % 11)
    return jnp.stack([first, second])


@pytest.mark.parametrize('name', MODELS)
def test_scores_are_means_of_the_kept_rows_on_every_form_of_a_model(name):
    cfg = MODELS[name]
    params = start(cfg)
    tokens = rows(cfg, params)
    masks = [jnp.stack([mask] * 2) for mask in (NEEDLE, ANSWER)]
    found = score_retrieval(cfg.make(), params, tokens, *masks)
    assert found.recall[0] == 1 and found.recall[1] < 0.5
    assert found.layers == ((1,) if name == 'hybrid' else (0, 1, 2))
    patterns = capture.run(cfg.make(), params, tokens[:1], sites=['pattern']).stack('pattern')[:, 0]
    np.testing.assert_allclose(found.scores, hits(patterns, tokens[0], NEEDLE, ANSWER))


def test_padding_changes_nothing():
    params = start(MODEL)
    tokens, masks = rows(MODEL, params)[:1], [NEEDLE[None], ANSWER[None]]
    plain = score_retrieval(MODEL.make(), params, tokens, *masks)
    pad = lambda x: jnp.pad(x, ((0, 0), (2, 1)))
    segments = pad(jnp.ones_like(tokens))
    padded = score_retrieval(MODEL.make(), params, pad(tokens), *map(pad, masks), segments=segments)
    np.testing.assert_allclose(padded.scores, plain.scores)
    np.testing.assert_allclose(padded.recall, plain.recall)


def test_heads_are_ranked_by_score():
    found = RetrievalScores((2, 5), jnp.array([[0.1, 0.9], [0.5, 0.0]]), jnp.ones(1))
    assert found.ranked() == [(2, 1), (5, 0), (2, 0), (5, 1)]


def test_what_cannot_be_scored_is_named():
    params, masks = start(MODEL), [NEEDLE[None], ANSWER[None]]
    with pytest.raises(ValueError, match='answer is empty in row 0'):
        score_retrieval(MODEL.make(), params, TOKENS[None], NEEDLE[None], jnp.zeros((1, 9), bool))
    recurrent = dataclasses.replace(MODEL, mixer=(MIXERS['rg_lru'],))
    with pytest.raises(ValueError, match='the site pattern is missing'):
        score_retrieval(recurrent.make(), start(recurrent), TOKENS[None], *masks)
