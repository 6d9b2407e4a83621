"""AttentionInfluence: exact zeros, uniform attention as queries of 0, padding, sums, selection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.understanding.heads import score_heads
from jattn.understanding.influence import influence, influences, select
from tests.understanding.opened import TOKENS, opened, padded

HEADS = [(0, 1), (1, 2)]


@pytest.fixture(scope='module')
def whole():
    return influence(*opened('scanned'), TOKENS, HEADS)


def test_no_head_no_influence():
    found = influence(*opened('scanned'), TOKENS, [])
    assert found.score.tolist() == [0, 0] and not np.any(found.by_token)
    np.testing.assert_array_equal(found.base, found.silenced)


@pytest.mark.parametrize('heads', [HEADS, [(layer, head) for layer in range(2) for head in range(4)]])
def test_the_loss_is_that_of_the_model_and_of_the_model_whose_queries_are_0(heads):
    model, params = opened('scanned')
    found = influence(model, params, TOKENS, heads)
    q = params['body']['block_0']['mixer']['q_proj']['kernel']  # [repeat, D, H, K]
    for layer, head in heads:
        q = q.at[layer, :, head].set(0)
    block = params['body']['block_0']
    mixer = block['mixer'] | {'q_proj': {'kernel': q}}
    without = params | {'body': params['body'] | {'block_0': block | {'mixer': mixer}}}
    for tree, expected in ((params, found.base), (without, found.silenced)):
        log_p = jax.nn.log_softmax(jax.jit(model.apply)({'params': tree}, TOKENS)[0][:, :-1])
        nats = -jnp.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1)[..., 0]
        np.testing.assert_allclose(jnp.mean(nats, axis=1), expected, rtol=1e-5)
    assert np.all(np.abs(found.score) > 1e-4)


def test_several_sets_are_scored_as_each_alone(whole):
    found = influences(*opened('scanned'), TOKENS, [[], HEADS])
    assert found[0].score.tolist() == [0, 0]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7), found[1], whole)


def test_tokens_add_up_to_the_score_in_every_unit(whole):
    mean = np.mean(whole.by_token, axis=1)
    np.testing.assert_allclose(mean / whole.base, whole.score, rtol=1e-4)
    for relative_to, scale in (('silenced', whole.silenced), ('none', 1)):
        other = influence(*opened('scanned'), TOKENS, HEADS, relative_to=relative_to)
        np.testing.assert_allclose(other.score, mean / scale, rtol=1e-4)


def test_padding_and_the_order_of_rows_change_nothing(whole):
    rows, context = padded(TOKENS[::-1])
    found = influence(*opened('scanned'), rows, HEADS, segments=context.segments)
    np.testing.assert_allclose(found.score[::-1], whole.score, rtol=1e-3)
    assert not np.any(found.by_token[:, :2]) and not np.any(found.by_token[:, -1:])


def words_and_repeats(key, count):
    """Rows of 24 words: drawn from a fixed table, and 12 different ones said twice."""
    of_words, of_repeats = jax.random.split(key)
    words = jax.random.categorical(of_words, -jnp.log(1.0 + jnp.arange(16)), shape=(count, 24))
    order = jax.vmap(functools.partial(jax.random.permutation, x=16))(jax.random.split(of_repeats, count))
    return words, jnp.tile(order[:, :12], 2)


def trained_scorer(steps):
    """Two layers of heads that have seen both kinds of rows."""
    cfg = DecoderConfig(
        width=32,
        layers=2,
        mixer=(SoftmaxConfig(heads=4),),
        read_in='tokens',
        input_size=16,
        output_size=16,
        remat='none',
    )
    model, optimizer = cfg.make(), optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))['params']

    def loss(params, key):
        rows = jnp.concatenate(words_and_repeats(key, 32))
        log_p = jax.nn.log_softmax(model.apply({'params': params}, rows)[0][:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, rows[:, 1:, None], axis=-1))

    def step(n, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(jax.random.key(1), n)), state)
        return optax.apply_updates(params, updates), state

    return model, jax.jit(lambda p: jax.lax.fori_loop(0, steps, step, (p, optimizer.init(p)))[0])(params)


@pytest.mark.slow
def test_a_trained_scorer_finds_nothing_in_words_without_order_and_much_in_repeats():
    model, params = trained_scorer(800)
    layer, head, score = score_heads(model, params, jax.random.key(2), jnp.arange(16), batch=16, half=12).best(
        'induction'
    )
    assert score > 0.4
    words, repeats = (
        influence(model, params, rows, [(layer, head)]).score for rows in words_and_repeats(jax.random.key(5), 64)
    )
    assert abs(np.mean(words)) < 0.02 and np.mean(repeats) > 0.2
    assert np.min(repeats) > np.max(words)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hybrid', 'unrolled'])
def test_other_forms_have_no_influence_without_heads_and_some_with(name):
    layer = 1
    assert influence(*opened(name), TOKENS, []).score.tolist() == [0, 0]
    assert np.all(influence(*opened(name), TOKENS, [(layer, 0)]).score != 0)


def test_the_best_of_every_domain_are_selected_whatever_its_scale():
    score, domains = jnp.array([1.0, 3.0, 2.0, 10.0, 30.0]), 'aaabb'
    assert select(score, domains, 1.0) == [0, 1, 2, 3, 4]
    assert select(score, domains, 0.4) == [1, 2, 4]  # ceil(1.2) and ceil(0.8)
    assert select(score * jnp.array([1, 1, 1, 7, 7]), domains, 0.4) == [1, 2, 4]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(kind='mean'), "kind='mean' must be 'uniform' or 'zero'"),
        (dict(relative_to='loss'), "relative_to='loss' must be one of base, silenced, none"),
        (dict(heads=[(0, 9)]), r'no such head, layer 0 has 4 \(0 .. 3\)'),
        (dict(tokens=TOKENS[:, :1]), 'needs two tokens'),
    ],
)
def test_what_cannot_be_scored_is_named(change, message):
    model, params = opened('scanned')
    arguments = dict(tokens=TOKENS, heads=HEADS) | change
    with pytest.raises(ValueError, match=message):
        influence(model, params, arguments.pop('tokens'), arguments.pop('heads'), **arguments)


def test_a_model_without_attention_is_named():
    with pytest.raises(ValueError, match="no site 'scores'"):
        influence(*opened('mamba'), TOKENS, HEADS)


def test_shares_out_of_range_and_missing_domains_are_refused():
    with pytest.raises(ValueError, match='share=0 must be in'):
        select(jnp.ones(2), 'ab', 0)
    with pytest.raises(ValueError, match='1 domains for 2 scores'):
        select(jnp.ones(2), 'a', 0.5)
