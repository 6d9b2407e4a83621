"""Paired claims: bounds and known scorers of the protocol, thresholds, contexts drawn again, cached prefixes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers import RGLRUConfig, SoftmaxConfig
from jattn.testbeds import paired_claims
from jattn.testbeds.facts_and_fibs import KINDS, FactsAndFibs

RATES = ('TPR', 'TNR', 'accuracy', 'pairwise', 'none_rate', 'forced_choice', 'bias_gap', 'best_threshold_pairwise')
P = 4000
measure = jax.jit(paired_claims.pair_metrics)


def metrics(s_fact, s_fib, *args, **kwargs):
    found = measure(jnp.asarray(s_fact, jnp.float32), jnp.asarray(s_fib, jnp.float32), *args, **kwargs)
    return jax.tree.map(float, found)


def scores(seed, pairs=P, none=0.0):
    """Scores with many ties, some of them None."""
    rng = np.random.default_rng(seed)
    s = np.round(rng.normal([[0.7], [0.0]], 1.0, (2, pairs)), 1)
    return np.where(rng.random(s.shape) < none, np.nan, s)


def within(value, expected, variance, count=P):
    return abs(value - expected) <= 4.5 * math.sqrt(variance / count)


@pytest.mark.parametrize('none', [0.0, 0.2])
def test_the_numbers_are_their_definitions(none):
    s_fact, s_fib = scores(0, 300, none)
    found = metrics(s_fact, s_fib, 0.3)
    a = [s > np.float32(0.3) for s in s_fact.astype(np.float32)]
    b = [not math.isnan(s) and s <= np.float32(0.3) for s in s_fib.astype(np.float32)]
    choice = [1.0 if s > t else 0.5 if s == t else 0.0 for s, t in zip(s_fact, s_fib)]
    expected = {
        'TPR': np.mean(a),
        'TNR': np.mean(b),
        'accuracy': (np.mean(a) + np.mean(b)) / 2,
        'pairwise': np.mean([x and y for x, y in zip(a, b)]),
        'none_rate': np.mean(np.isnan([s_fact, s_fib])),
        'forced_choice': np.mean(choice),
        'bias_gap': np.mean(choice) - np.mean([x and y for x, y in zip(a, b)]),
    }
    assert found['pairs'] == 300 and set(found) == {*RATES, 'pairs'}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('none', [0.0, 0.2])
@pytest.mark.parametrize('threshold', [-5.0, -0.3, 0.0, 0.4, 5.0])
def test_the_bounds_hold_at_every_threshold(threshold, none):
    for seed in range(5):
        found = metrics(*scores(seed, 200, none), threshold)
        assert max(0, found['TPR'] + found['TNR'] - 1) <= found['pairwise'] + 1e-6
        assert found['pairwise'] <= min(found['TPR'], found['TNR'], found['accuracy'], found['forced_choice'])
        assert found['pairwise'] <= found['best_threshold_pairwise'] <= found['forced_choice']


def test_always_true_wins_no_pair():
    found = metrics(np.full(P, 3.0), np.full(P, 3.0))
    assert (found['TPR'], found['TNR'], found['accuracy'], found['pairwise']) == (1, 0, 0.5, 0)
    assert (found['forced_choice'], found['bias_gap'], found['best_threshold_pairwise']) == (0.5, 0.5, 0)


@pytest.mark.parametrize('q', [0.5, 0.3, 0.9])
def test_coins_win_q_times_one_minus_q_of_the_pairs(q):
    says = np.where(np.random.default_rng(1).random((2, P)) < q, 1.0, -1.0)
    found = metrics(*says)
    assert within(found['pairwise'], q * (1 - q), q * (1 - q) * (1 - q * (1 - q)))
    assert within(found['accuracy'], 0.5, q * (1 - q) / 2) and within(found['forced_choice'], 0.5, q * (1 - q) / 2)
    facts = FactsAndFibs().facts()
    assert q * (1 - q) <= facts['coins_pairwise'] and (q != 0.5 or q * (1 - q) == facts['coins_pairwise'])


def test_a_model_that_answers_nothing_scores_zero_and_not_nan():
    found = metrics(np.full(9, np.nan), np.full(9, np.nan))
    assert {name: found[name] for name in RATES} == {**dict.fromkeys(RATES, 0), 'none_rate': 1}


def test_a_none_is_wrong_and_counted_never_skipped():
    s_fact, s_fib = np.ones(10), -np.ones(10)
    found = metrics(np.where(np.arange(10) < 3, np.nan, s_fact), np.where(np.arange(10) == 9, np.nan, s_fib))
    expected = dict(TPR=0.7, TNR=0.9, accuracy=0.8, pairwise=0.6, none_rate=0.2, forced_choice=0.6, bias_gap=0)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found['best_threshold_pairwise'] == pytest.approx(0.6)
    valid = np.stack([np.arange(10) >= 3, np.arange(10) != 9], axis=1)
    assert metrics(s_fact, s_fib, valid=valid) == found


def test_an_oracle_wins_all_and_a_flipped_one_none():
    found = metrics(np.ones(7), -np.ones(7))
    assert {found[name] for name in RATES} == {0.0, 1.0} and found['none_rate'] == found['bias_gap'] == 0
    assert all(found[name] == 1 for name in set(RATES) - {'none_rate', 'bias_gap'})
    assert set(metrics(-np.ones(7), np.ones(7)).values()) == {0.0, 7.0}


@pytest.mark.parametrize('scorer', ['coins', 'always_true', 'consistent', 'any'])
def test_a_scorer_that_sees_the_claim_alone_is_at_one_half_on_mirror_images(scorer):
    # Claims 2 i and 2 i + 1 are mirror images; which of the two is the fact, the context decides: both ways occur.
    rng = np.random.default_rng(2)
    side = rng.normal(size=P)
    s = {
        'coins': np.where(rng.random((2, P)) < 0.5, 1.0, -1.0),
        'always_true': np.ones((2, P)),
        'consistent': np.stack([side, -side]),
        'any': np.round(rng.normal(0.3, 1.0, (2, P)), 1),
    }[scorer]
    both = np.concatenate([s, s[::-1]], axis=1)
    for threshold in (0.0, -0.4):
        found = metrics(*both, threshold)
        assert found['forced_choice'] == 0.5 and found['accuracy'] == pytest.approx(0.5, abs=1e-6)
        assert 0 <= found['pairwise'] <= FactsAndFibs().facts()['no_knowledge_ceiling_pairwise']
    pairwise = metrics(*both)['pairwise']
    if scorer == 'coins':
        assert within(pairwise, 0.25, 0.5 * 0.5 / 4)
    if scorer in ('always_true', 'consistent'):
        assert pairwise == {'always_true': 0.0, 'consistent': 0.5}[scorer]


def test_a_fixed_score_of_each_claim_has_forced_choice_one_half_on_facts_and_fibs():
    task = FactsAndFibs(events=24, entities=6, places=3, objects=3, most=3)
    _, facts, fibs, meta = jax.jit(task.pairs, static_argnums=(1, 2))(jax.random.key(0), 700, 6)
    weights = np.random.default_rng(3).normal(size=(7, task.input_size))
    s_fact, s_fib = (weights[np.arange(7), np.asarray(claims)].sum(-1).ravel() for claims in (facts, fibs))
    groups = {name: np.asarray(meta['kind']).ravel() == i for i, name in enumerate(KINDS)}
    found = metrics(s_fact, s_fib, groups=groups)
    assert within(found['forced_choice'], 0.5, 0.25, 4200) and found['pairwise'] < 0.5
    for group in found['groups'].values():
        assert group['pairs'] == 700 and within(group['forced_choice'], 0.5, 0.25, 700)


def test_a_constant_on_all_scores_moves_the_threshold_and_not_the_choice():
    s_fact, s_fib = np.random.default_rng(4).integers(-8, 8, (2, 200)) / 4.0
    plain = metrics(s_fact, s_fib)
    gaps = [metrics(s_fact + c, s_fib + c) for c in (-64.0, -1.0, 1.0, 64.0)]
    for moved in gaps:
        assert moved['forced_choice'] == plain['forced_choice']
        assert moved['best_threshold_pairwise'] == plain['best_threshold_pairwise'] > 0
    assert gaps[0]['pairwise'] == gaps[-1]['pairwise'] == 0 < plain['pairwise']
    assert metrics(s_fact + 1, s_fib + 1, 1.0)['pairwise'] == plain['pairwise']


@pytest.mark.parametrize('seed', range(6))
def test_the_best_threshold_is_that_of_all_thresholds_tried(seed):
    s_fact, s_fib = scores(seed, 40, none=0.1).astype(np.float32)
    threshold, best = (float(x) for x in paired_claims.best_threshold(s_fact, s_fib))
    tried = {t: np.mean((s_fact > t) & (s_fib <= t)) for t in np.concatenate([s_fib, s_fact]) if not np.isnan(t)}
    assert best == pytest.approx(max(tried.values()))
    assert threshold == min(t for t, won in tried.items() if won == max(tried.values()))
    found = metrics(s_fact, s_fib, threshold)
    assert found['pairwise'] == pytest.approx(best) and found['best_threshold_pairwise'] == pytest.approx(best)


def test_the_best_threshold_of_nothing_to_win_is_zero():
    assert [float(x) for x in paired_claims.best_threshold(jnp.zeros(3), jnp.ones(3))] == [0, 0]
    assert [float(x) for x in paired_claims.best_threshold(jnp.zeros(0), jnp.zeros(0))] == [0, 0]


def test_a_group_is_measured_as_its_pairs_alone():
    s_fact, s_fib = scores(5, 60, none=0.1)
    rng = np.random.default_rng(6)
    groups = {'one': rng.random(60) < 0.5, 'other': rng.random(60) < 0.2, 'none': np.zeros(60, bool)}
    assert np.any(groups['one'] & groups['other'])
    found = metrics(s_fact, s_fib, 0.2, groups=groups)['groups']
    for name in ('one', 'other'):
        assert found[name] == pytest.approx(metrics(s_fact[groups[name]], s_fib[groups[name]], 0.2), abs=1e-6)
    assert set(found['none'].values()) == {0.0} and set(metrics(np.zeros(0), np.zeros(0)).values()) == {0.0}


def test_scores_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r's_fact has shape \(3,\), s_fib \(2,\)'):
        paired_claims.pair_metrics(jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match=r'valid has shape \(3,\), but \[P, 2\] with P=3'):
        paired_claims.pair_metrics(jnp.zeros(3), jnp.zeros(3), valid=jnp.ones(3, bool))


def test_contexts_are_drawn_again_with_all_their_pairs():
    # Ten pairs of a context stand or fall together: the interval is that of 200 draws, not of 2000.
    wins = np.repeat(np.random.default_rng(7).random(200) < 0.5, 10)
    contexts = np.repeat(np.arange(200), 10)
    low, high = paired_claims.bootstrap(jax.random.key(0), wins - 0.5, -np.ones(2000), contexts)['pairwise']
    p = wins.mean()
    width = 2 * 1.96 * math.sqrt(p * (1 - p) / 200)
    assert low < p < high and high - low == pytest.approx(width, rel=0.12)


def test_a_context_counts_by_its_pairs():
    # Contexts of three pairs won and one lost: the draws are aa, ab, ba, bb with pairwise 1, 3/4, 3/4, 0.
    s_fact, names = jnp.array([1.0, 1, 1, -1]), ['a', 'a', 'a', 'b']
    ends = {
        level: paired_claims.bootstrap(jax.random.key(0), s_fact, -jnp.ones(4), names, level=level)['pairwise']
        for level in (0.4, 0.6, 0.9)
    }
    assert ends == {0.4: (0.75, 0.75), 0.6: (0.0, 1.0), 0.9: (0.0, 1.0)}
    with pytest.raises(ValueError, match='contexts has 3 entries, but there are 4 pairs'):
        paired_claims.bootstrap(jax.random.key(0), s_fact, -jnp.ones(4), names[:3])


def test_the_interval_of_every_rate_holds_the_rate():
    s_fact, s_fib = scores(8, 300, none=0.1)
    found = metrics(s_fact, s_fib, 0.2)
    intervals = paired_claims.bootstrap(jax.random.key(1), s_fact, s_fib, np.arange(300) % 50, threshold=0.2)
    assert set(intervals) == set(RATES) - {'best_threshold_pairwise'}
    assert all(low < found[name] < high for name, (low, high) in intervals.items())


TOKENS, CAPACITY = 30, 26
CONTEXTS = jax.random.randint(jax.random.key(0), (3, 20), 0, TOKENS)
CLAIMS = jax.random.randint(jax.random.key(1), (3, 4, 6), 0, TOKENS)


def scorer_of(cfg):
    """A decoder of one mixer: what reads tokens into a state, and what scores a claim behind it."""
    module = cfg.make()
    table, out = jax.random.normal(jax.random.key(2), (TOKENS, 32)), jax.random.normal(jax.random.key(3), (32,))
    params = jax.jit(module.init)(jax.random.key(4), jnp.zeros((1, 2, 32)))
    call = lambda state, tokens: module.apply(params, table[tokens][None], state=state)
    state = cfg.init_state(1, CAPACITY, jnp.float32)
    return state, lambda state, tokens: call(state, tokens)[1], lambda state, claim: call(state, claim)[0][0, -1] @ out


@pytest.mark.parametrize('cfg', [SoftmaxConfig(width=32, heads=2), RGLRUConfig(width=32)], ids=['cache', 'recurrence'])
def test_claims_behind_one_cached_prefix_score_as_from_scratch(cfg):
    state, read, score = scorer_of(cfg)
    from_scratch = jax.jit(lambda context, claim: score(state, jnp.concatenate([context, claim])))
    expected = [[from_scratch(context, claim) for claim in claims] for context, claims in zip(CONTEXTS, CLAIMS)]
    assert np.std(expected) > 0.1
    prefix = paired_claims.streamed(read, state, chunk=7)
    found = jax.jit(lambda *args: paired_claims.score_contexts(prefix, score, *args, at_once=2))(CONTEXTS, CLAIMS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_context_is_read_once_for_all_its_claims_in_pieces():
    pieces = []

    def read(state, tokens):
        jax.debug.callback(lambda tokens: pieces.append(len(tokens)), tokens)
        return state * 7 % 1009 + jnp.sum(tokens)

    prefix = paired_claims.streamed(read, jnp.int32(1), chunk=8)
    found = jax.jit(lambda *args: paired_claims.score_pairs(prefix, lambda state, claim: state + claim[0] / 2, *args))(
        CONTEXTS, CLAIMS, CLAIMS + 1
    )
    jax.effects_barrier()
    assert sorted(pieces) == [4] * 3 + [8] * 6
    states = []
    for context in CONTEXTS.tolist():
        state = 1
        for piece in (context[:8], context[8:16], context[16:]):
            state = state * 7 % 1009 + sum(piece)
        states.append(state)
    expected = np.array(states)[:, None] + np.asarray(CLAIMS)[:, :, 0] / 2
    np.testing.assert_array_equal(found, [expected, expected + 0.5])


def test_facts_and_fibs_of_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r'facts have shape \(3, 4, 6\), fibs \(3, 3, 6\)'):
        paired_claims.score_pairs(None, None, CONTEXTS, CLAIMS, CLAIMS[:, :3])
