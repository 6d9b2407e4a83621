"""Facts and fibs: a second checker in plain Python, minimal edits, claims that alone say nothing, spans, sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jattn.testbeds import event_log
from jattn.testbeds.event_log import ANSWER, FALSE, FIRST_KIND, KINDS, TRUE
from jattn.testbeds.facts_and_fibs import GRANULARITIES, OF_PAIRS, FactsAndFibs, entails, granularity
from tests.testbeds.draws import assert_one_key_is_one_batch, draw

TASKS = {
    'default': FactsAndFibs(),
    # Few of everything and no WAIT: nearly every random event comes close to spoiling a claim.
    'crowded': FactsAndFibs(events=40, entities=3, places=2, objects=2, most=5, noise=0.0),
    'smallest': FactsAndFibs(events=3, entities=3, places=2, objects=2, most=2, noise=1.0),
}
ROWS = 600
MANY = 40_000
# Every kind is one more program to compile: half of them run in make test-all.
each_kind = pytest.mark.parametrize(
    'kind', [pytest.param(n, marks=[pytest.mark.slow] if n % 2 else []) for n in range(6)], ids=KINDS
)
RARE = 1e-5  # a test of chance fails once in so many runs of another seed


draw_pairs = jax.jit(lambda task, key, contexts, claims: task.pairs(key, contexts, claims), static_argnums=(0, 2, 3))
score = jax.jit(
    lambda task, batch: {name: task.metrics(logits, batch) for name, logits in task.baselines(batch).items()},
    static_argnums=0,
)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


@pytest.fixture(scope='module')
def many():
    """A small world with many rows, so that every pair of claims comes often."""
    task = FactsAndFibs(events=4, entities=3, places=3, objects=2, most=4)
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(1), MANY))


def read(task, tokens):
    """Tokens of a log -> its events as tuples of words."""
    return [tuple(task.world.say(event).split()) for event in np.reshape(tokens, (-1, 4))]


def holds(log, claim):
    """Whether a log, a list of tuples of words, entails a claim in words. It shares nothing with the checker in jnp."""
    kind, *slots = [word for word in claim.split() if word not in ('.', 'ANSWER')]
    if kind == 'last_state':
        where = {}
        for action, who, place, _ in log:
            if action == 'MOVE':
                where[who] = place
        return where.get(slots[0]) == slots[1]
    if kind == 'order':
        one, other = ('DROP', *slots[:2], '.'), ('DROP', *slots[3:], '.')
        assert log.count(one) == log.count(other) == 1
        return (log.index(one) < log.index(other)) == (slots[2] == 'BEFORE')
    if kind == 'cause':
        who, giver = slots
        causes = []
        for time, (action, person, thing, _) in enumerate(log):
            if action == 'HAPPY' and person == who:
                causes += [event[1] for event in log[:time] if event[0] == 'GIVE' and event[2:] == (thing, who)]
        assert len(causes) == 1
        return causes == [giver]
    if kind == 'count':
        return log.count(('TAKE', *slots[:2], '.')) == int(slots[2])
    if kind == 'quantifier':
        return ('MOVE', *slots, '.') not in log
    assert kind == 'detail'
    return ('GIVE', *slots) in log


def homogeneous(left, right):
    """The p-value that two independent samples of counts [V] have one law."""
    table = np.stack([left, right])
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] < 2 else scipy.stats.chi2_contingency(table).pvalue


def symmetric(left, right):
    """Bowker's p-value that (left, right) and (right, left) have one law, and how many pairs of values there are."""
    names, index = np.unique(np.concatenate([left, right]), axis=0, return_inverse=True)
    index = index.reshape(2, -1)
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (index[0], index[1]), 1)
    upper = np.triu_indices(len(names), 1)
    there, back = table[upper], table.T[upper]
    seen = there + back > 0
    statistic = np.sum((there - back)[seen] ** 2 / (there + back)[seen])
    return scipy.stats.chi2.sf(statistic, seen.sum()), int(seen.sum())


def test_a_log_entails_every_fact_and_contradicts_every_fib(drawn):
    task, batch = drawn
    assert set(batch.meta['kind']) == set(range(6))
    for row, fact, fib in zip(batch.inputs, batch.meta['fact'], batch.meta['fib']):
        log = read(task, row[: task.context])
        assert holds(log, task.world.say(fact)) and not holds(log, task.world.say(fib))


def test_a_fib_changes_one_slot_and_numbers_by_one(drawn):
    _, batch = drawn
    fact, fib = batch.meta['fact'], batch.meta['fib']
    assert np.all(np.sum(fact != fib, axis=1) == 1)
    slots = {name: set(np.flatnonzero((fact != fib)[batch.meta['kind'] == i].any(0))) for i, name in enumerate(KINDS)}
    assert slots == {'last_state': {2}, 'order': {3}, 'cause': {2}, 'count': {3}, 'quantifier': {1}, 'detail': {2}}
    of_count = batch.meta['kind'] == event_log.COUNT
    assert set(np.abs(fact - fib)[of_count, 3]) == {1}


def test_a_row_is_events_a_claim_and_answer_and_only_this_is_scored(drawn):
    task, batch = drawn
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.inputs.shape == (ROWS, 4 * task.events + 7) and np.all(batch.inputs[:, -1] == ANSWER)
    truth = batch.meta['truth'].astype(bool)
    shown = np.where(truth[:, None], batch.meta['fact'], batch.meta['fib'])
    np.testing.assert_array_equal(batch.inputs[:, task.context :], shown)
    np.testing.assert_array_equal(batch.inputs[:, task.context] - FIRST_KIND, batch.meta['kind'])
    np.testing.assert_array_equal(batch.targets[:, -1], np.where(truth, TRUE, FALSE))
    assert not batch.targets[:, :-1].any() and not batch.mask[:, :-1].any() and batch.mask[:, -1].all()


def test_every_event_has_the_form_of_its_action(drawn):
    task, batch = drawn
    forms = {'MOVE': 'ep.', 'TAKE': 'eo.', 'DROP': 'eo.', 'GIVE': 'eoe', 'HAPPY': 'eo.', 'WAIT': 'e..'}
    for row in batch.inputs[:100]:
        for action, *slots in read(task, row[: task.context]):
            assert ''.join(word[0] for word in slots) == forms[action]
            assert action != 'GIVE' or slots[0] != slots[2]


def test_a_fib_is_plausible(drawn):
    task, batch = drawn
    for row, fact, fib in zip(batch.inputs, batch.meta['fact'], batch.meta['fib']):
        log = read(task, row[: task.context])
        kind, *slots = task.world.say(fact).split()
        edited = task.world.say(fib).split()[1:]
        if kind == 'last_state':  # who was there earlier
            assert ('MOVE', *edited[:2], '.') in log
        if kind == 'cause':  # the other giver gave something else, before the happiness
            [(time, thing)] = [(t, e[2]) for t, e in enumerate(log) if e[0] == 'HAPPY' and e[1] == slots[0]]
            assert any(e[:2] == ('GIVE', edited[1]) and e[3] == slots[0] and e[2] != thing for e in log[:time])
        if kind == 'quantifier':  # who is said never to have been there was there once, the other one elsewhere
            assert log.count(('MOVE', *edited[:2], '.')) == 1
            assert any(e[:2] == ('MOVE', slots[0]) for e in log)
        if kind == 'detail':  # the other object was given too
            assert any(e[0] == 'GIVE' and e[2] == edited[1] for e in log)


def test_first_and_last_are_the_events_that_are_needed(drawn):
    task, batch = drawn
    for row, fact, fib, first, last in zip(
        batch.inputs, *(batch.meta[name] for name in ('fact', 'fib', 'first', 'last'))
    ):
        log = read(task, row[: task.context])
        kind, *slots = task.world.say(fact).split()
        ends = [log[first], log[last]]
        if kind == 'last_state':
            assert ends == [('MOVE', slots[0], task.world.say(fib).split()[2], '.'), ('MOVE', *slots[:2], '.')]
        if kind == 'order':
            drops = [('DROP', *slots[:2], '.'), ('DROP', *slots[3:5], '.')]
            assert ends == (drops if slots[2] == 'BEFORE' else drops[::-1])
        if kind == 'cause':
            assert ends == [('GIVE', slots[1], ends[1][2], slots[0]), ('HAPPY', slots[0], ends[0][2], '.')]
        if kind == 'count':
            takes = [time for time, event in enumerate(log) if event == ('TAKE', *slots[:2], '.')]
            assert (first, last) == (takes[0], takes[-1])
        if kind == 'quantifier':
            assert (first, last) == (0, task.events - 1)
        if kind == 'detail':
            assert first == last and ends[0] == ('GIVE', *slots[:3])


def test_granularity_is_the_span_as_a_share_of_the_log(drawn):
    task, batch = drawn
    span = batch.meta['last'] - batch.meta['first']
    expected = [0 if s <= task.events / 20 else 1 if s <= task.events / 2 else 2 for s in span.tolist()]
    np.testing.assert_array_equal(batch.meta['granularity'], expected)
    spans = jnp.array([0, 12, 13, 128, 129, 255])
    assert [GRANULARITIES[i] for i in granularity(0 * spans, spans, 256)] == ['single'] * 2 + ['multi'] * 2 + [
        'global'
    ] * 2


@each_kind
def test_fact_and_fib_are_exchangeable(many, kind):
    _, batch = many
    rows = batch.meta['kind'] == kind
    fact, fib = batch.meta['fact'][rows], batch.meta['fib'][rows]
    p, compared = symmetric(fact, fib)
    assert p > RARE
    # All pairs of claims that there are came up, often enough for the test to see a bias.
    assert compared == {0: 9, 1: 12, 2: 3, 3: 18, 4: 9, 5: 6}[kind] and rows.sum() > 300 * compared
    one_in_ten = np.random.default_rng(0).random(len(fact)) < 0.1
    higher = (fact > fib).any(axis=1) & one_in_ten
    assert symmetric(np.where(higher[:, None], fib, fact), np.where(higher[:, None], fact, fib))[0] < RARE


@each_kind
def test_facts_and_fibs_have_the_same_tokens_and_the_same_whole_claims(many, kind):
    # Shown claims: a row has a fact or a fib, so that the two samples are independent.
    task, batch = many
    claims, truth = batch.inputs[:, task.context : -1], batch.meta['truth']
    rows = batch.meta['kind'] == kind
    facts, fibs = claims[rows & (truth == 1)], claims[rows & (truth == 0)]
    tokens = [np.bincount(sample[:, 1:].ravel(), minlength=task.input_size) for sample in (facts, fibs)]
    for slot in range(1, 6):
        columns = [np.bincount(sample[:, slot], minlength=task.input_size) for sample in (facts, fibs)]
        assert homogeneous(*columns) > RARE
    names, index = np.unique(claims[rows], axis=0, return_inverse=True)
    index, is_fact = index.ravel(), truth[rows] == 1
    assert homogeneous(*(np.bincount(index[side], minlength=len(names)) for side in (is_fact, ~is_fact))) > RARE
    assert homogeneous(*tokens) > RARE


def test_the_chi_square_sees_the_prior_of_counts():
    # What one would write first: the true number uniform in 1..4, the lie a neighbour of it.
    rng = np.random.default_rng(0)
    true = rng.integers(1, 5, 4000)
    lie = np.where(true == 1, 2, np.where(true == 4, 3, true + rng.choice([-1, 1], 4000)))
    assert homogeneous(np.bincount(true[:2000], minlength=5), np.bincount(lie[2000:], minlength=5)) < RARE
    assert symmetric(true, lie)[0] < RARE


def test_the_best_scorer_that_sees_the_claim_alone_has_forced_choice_one_half(many):
    # It learns from one half how often each whole claim is true, and is asked about the other half.
    _, batch = many
    names, index = np.unique(np.concatenate([batch.meta['fact'], batch.meta['fib']]), axis=0, return_inverse=True)
    fact, fib = index.reshape(2, -1)
    half = MANY // 2
    votes = np.bincount(fact[:half], minlength=len(names)) - np.bincount(fib[:half], minlength=len(names))
    choice = (votes[fact[half:]] > votes[fib[half:]]) + 0.5 * (votes[fact[half:]] == votes[fib[half:]])
    for kind in range(6):
        of_kind = choice[batch.meta['kind'][half:] == kind]
        assert abs(of_kind.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(len(of_kind))


def test_kinds_are_equally_often_and_half_of_the_claims_are_true(many):
    _, batch = many
    assert scipy.stats.chisquare(np.bincount(batch.meta['kind'], minlength=6)).pvalue > RARE
    assert abs(batch.meta['truth'].mean() - 0.5) < 4.5 * 0.5 / np.sqrt(MANY)
    only = FactsAndFibs(claims=('order', 'count'))
    assert set(np.asarray(draw(only, jax.random.key(0), 50).meta['kind'])) == {event_log.ORDER, event_log.COUNT}


def test_waits_are_their_share_of_the_events_that_nothing_needs():
    task = FactsAndFibs(events=200, noise=0.3)
    batch = draw(task, jax.random.key(2), 200)
    waits = np.asarray(batch.inputs[:, : task.context : 4] == event_log.WAIT).mean(axis=1)
    # At most 4 of 200 events are planted, and few others become WAIT.
    assert 0.29 < waits.mean() < 0.32


SEVERAL = {
    'many': FactsAndFibs(events=24, claims_per_row=6),
    'crowded': FactsAndFibs(events=20, claims_per_row=5, entities=4, places=2, objects=2, most=4, noise=0.0),
    'one_kind': FactsAndFibs(events=16, claims_per_row=4, entities=8, places=2, objects=2, claims=('detail',)),
}


@pytest.mark.parametrize('name', SEVERAL)
def test_a_row_of_several_claims_has_an_answer_behind_each_and_these_alone_are_scored(name):
    task = SEVERAL[name]
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(7), 200))
    count = task.claims_per_row
    assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (200, 4 * task.events + 7 * count)
    claims = batch.inputs[:, task.context :].reshape(200, count, 7)
    truth = batch.meta['truth'].astype(bool)
    np.testing.assert_array_equal(claims, np.where(truth[..., None], batch.meta['fact'], batch.meta['fib']))
    np.testing.assert_array_equal(claims[..., 0] - FIRST_KIND, batch.meta['kind'])
    answers = np.flatnonzero(batch.inputs[0] == ANSWER)
    assert tuple(answers) == task.answers and np.all((batch.inputs == ANSWER).sum(axis=0)[answers] == 200)
    np.testing.assert_array_equal(batch.targets[:, answers], np.where(truth, TRUE, FALSE))
    assert not np.delete(batch.targets, answers, axis=1).any()
    np.testing.assert_array_equal(batch.mask, np.isin(np.arange(batch.mask.shape[1]), answers) * np.ones((200, 1)))
    assert not np.isin(batch.inputs, [TRUE, FALSE]).any()
    for row, shown, true in zip(batch.inputs, claims, truth):
        log = read(task, row[: task.context])
        assert [holds(log, task.world.say(claim)) for claim in shown] == true.tolist()


def test_a_row_never_holds_both_claims_of_a_pair_and_no_claim_twice():
    for task in SEVERAL.values():
        batch = jax.tree.map(np.asarray, draw(task, jax.random.key(7), 200))
        for fact, fib in zip(batch.meta['fact'], batch.meta['fib']):
            assert len({tuple(claim) for claim in [*fact, *fib]}) == 2 * task.claims_per_row


def test_the_claims_of_a_row_say_nothing_about_each_others_truth():
    # Coins of their own; and the best guess from two whole claims, learned on one half, is chance on the other.
    task = FactsAndFibs(
        events=6, claims_per_row=2, claims=('last_state', 'quantifier'), entities=3, places=2, objects=2, most=2
    )
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(8), MANY))
    truth = batch.meta['truth']
    assert homogeneous(*(np.bincount(truth[truth[:, 0] == side, 1], minlength=2) for side in (0, 1))) > RARE
    names, index = np.unique(batch.inputs[:, task.context :], axis=0, return_inverse=True)
    index, half = index.ravel(), MANY // 2
    assert half > 100 * len(names)
    for claim in range(2):
        votes = np.zeros(len(names))
        np.add.at(votes, index[:half], 2 * truth[:half, claim] - 1)
        guess = votes[index[half:]] > 0
        assert abs((guess == truth[half:, claim]).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(half)


def test_the_checker_and_the_metrics_read_every_claim_of_a_row():
    task = SEVERAL['many']
    batch = draw(task, jax.random.key(7), 200)
    found = score(task, batch)
    assert all(float(mean.value()) == 1 for name, mean in found['checker'].items() if name != 'loss')
    assert float(found['checker']['accuracy'].count) == 1200 and float(found['checker']['detail_accuracy'].count) == 200
    assert float(found['statement_only']['loss'].value()) == pytest.approx(np.log(2), rel=1e-6)
    # All but the answers about details are turned round: every other kind is wrong everywhere.
    is_detail = np.asarray(batch.meta['kind']) == event_log.DETAIL
    said = np.zeros(batch.inputs.shape, np.int32)
    said[:, task.answers] = np.where((np.asarray(batch.meta['truth']) == 1) == is_detail, TRUE, FALSE)
    metrics = jax.jit(task.metrics)(jax.nn.one_hot(said, task.output_size), batch)
    assert float(metrics['detail_accuracy'].value()) == 1 and float(metrics['order_accuracy'].value()) == 0
    assert float(metrics['accuracy'].value()) == pytest.approx(1 / 6)


def test_one_claim_a_row_is_the_first_choice_and_several_share_the_log_alone():
    one, more = FactsAndFibs(events=24), SEVERAL['many']
    assert one.claims_per_row == 1
    few, many = (jax.eval_shape(lambda key, task=task: task.sample(key, 3), jax.random.key(7)) for task in (one, more))
    assert few.meta['truth'].shape == (3,) and few.meta['fact'].shape == (3, 7)
    assert many.meta['truth'].shape == (3, 6) and many.meta['fact'].shape == (3, 6, 7)
    shapes = jax.eval_shape(lambda key: more.pairs(key, 2, 3), jax.random.key(0))
    assert shapes[0].shape == (2, 96) and shapes[1].shape == (2, 3, 7)  # the protocol: one claim at a time


PAIRED = {
    'many': (FactsAndFibs(events=80), 16),
    'crowded': (FactsAndFibs(events=40, entities=6, places=2, objects=2, most=4, noise=0.0), 8),
    'one_kind': (FactsAndFibs(events=40, entities=12, places=2, objects=2, claims=('detail',)), 6),
}


def test_paired_rows_are_a_fact_and_its_fib_about_one_log_and_are_scored_as_pairs():
    task = FactsAndFibs(events=8, claims_per_row=2, paired=True)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))
    facts, fibs = batch.inputs[0::2], batch.inputs[1::2]
    assert (facts[:, : task.context] == fibs[:, : task.context]).all()
    np.testing.assert_array_equal(facts[:, task.context :].reshape(-1, 2, 7), batch.meta['fact'][0::2])
    np.testing.assert_array_equal(fibs[:, task.context :].reshape(-1, 2, 7), batch.meta['fib'][1::2])
    assert (batch.targets[0::2, task.answers] == TRUE).all() and (batch.targets[1::2, task.answers] == FALSE).all()
    found = score(task, batch)
    rates = {name: [float(said[rate].value()) for rate in OF_PAIRS] for name, said in found.items()}
    # Equal odds everywhere: a tie in forced choice, and no claim is called true.
    assert OF_PAIRS == ('pairwise', 'forced_choice', 'bias_gap')
    assert rates == {'checker': [1, 1, 0], 'statement_only': [0, 0.5, 0.5]}


def test_paired_rows_come_in_twos():
    with pytest.raises(ValueError, match='a batch of 3 rows must be even where paired=True'):
        FactsAndFibs(paired=True).sample(jax.random.key(0), 3)


@pytest.mark.parametrize('name', PAIRED)
def test_several_claims_of_one_context_do_not_spoil_each_other(name):
    task, count = PAIRED[name]
    contexts, facts, fibs, meta = jax.tree.map(np.asarray, draw_pairs(task, jax.random.key(3), 60, count))
    assert contexts.shape == (60, 4 * task.events) and facts.shape == fibs.shape == (60, count, 7)
    assert np.all(np.sum(facts != fibs, axis=2) == 1) and np.all(facts[..., -1] == ANSWER)
    np.testing.assert_array_equal(facts[..., 0] - FIRST_KIND, meta['kind'])
    for context, true, false in zip(contexts, facts, fibs):
        log = read(task, context)
        assert all(holds(log, task.world.say(claim)) for claim in true)
        assert not any(holds(log, task.world.say(claim)) for claim in false)
        assert len({tuple(claim) for claim in [*true, *false]}) == 2 * count
    kinds = np.bincount(meta['kind'].ravel(), minlength=6)
    assert kinds[kinds > 0].max() - kinds[kinds > 0].min() <= 1 and np.sum(kinds > 0) == len(task.claims)


def test_pairs_of_one_context_are_exchangeable_one_by_one():
    task = FactsAndFibs(events=24, entities=6, places=2, objects=2, most=2)
    _, facts, fibs, meta = jax.tree.map(np.asarray, draw_pairs(task, jax.random.key(4), 3000, 6))
    for kind in range(6):
        rows = meta['kind'] == kind
        assert symmetric(facts[rows], fibs[rows])[0] > RARE


def test_the_checker_is_right_and_the_claim_alone_is_a_coin(drawn):
    task, batch = drawn
    found, facts = score(task, batch), task.facts()
    checker, coin = found['checker'], found['statement_only']
    assert all(float(mean.value()) == 1 for name, mean in checker.items() if name != 'loss')
    assert {f'{name}_accuracy' for name in KINDS} < set(checker)
    assert float(checker['loss'].value()) == pytest.approx(facts['checker'], abs=1e-6)
    assert float(coin['loss'].value()) == pytest.approx(facts['statement_only'], rel=1e-6)
    assert abs(float(coin['accuracy'].value()) - facts['chance_accuracy']) < 4.5 * 0.5 / np.sqrt(ROWS)
    assert np.all(np.asarray(task.log_odds(task.baselines(batch)['statement_only'])) == 0)
    odds = np.asarray(task.log_odds(task.baselines(batch)['checker']))
    np.testing.assert_array_equal(odds > 0, batch.meta['truth'] == 1)


def test_the_checker_agrees_with_plain_python_on_any_log_and_claim():
    # Logs that were made for other claims: most are refuted or entailed for reasons nobody planned.
    task = FactsAndFibs(events=12, entities=3, places=2, objects=2, most=3)
    kinds = ('last_state', 'count', 'quantifier', 'detail')
    events = event_log.random_events(jax.random.key(5), task.world, 300, 12, 0.1)
    facts = draw(dataclasses.replace(task, claims=kinds), jax.random.key(6), 300).meta['fact'][:, :6]
    found = np.asarray(jax.jit(entails, static_argnums=0)(task.world, events, facts))
    expected = [holds(read(task, log), task.world.say(claim)) for log, claim in zip(events, facts)]
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < found.mean() < 0.8


def test_a_claim_of_order_needs_both_events_and_one_of_cause_the_gift_before():
    world = TASKS['default'].world
    e, o, kind = world.entity, world.object, FIRST_KIND
    drops = jnp.array([[event_log.DROP, e, o, 0], [event_log.WAIT, e, 0, 0]])
    claims = jnp.array([[kind + event_log.ORDER, e, o, word, e + 1, o] for word in (event_log.BEFORE, event_log.AFTER)])
    assert not entails(world, jnp.stack([drops] * 2), claims).any()
    gift, happy = [event_log.GIVE, e, o, e + 1], [event_log.HAPPY, e + 1, o, 0]
    logs = jnp.array([[gift, happy], [happy, gift], [gift, [event_log.HAPPY, e + 1, o + 1, 0]]])
    claim = jnp.broadcast_to(jnp.array([kind + event_log.CAUSE, e + 1, e, 0, 0, 0]), (3, 6))
    assert entails(world, logs, claim).tolist() == [True, False, False]
    assert not entails(world, logs, claim.at[:, 2].set(e + 2)).any()


def test_accuracy_is_told_apart_by_kind_and_by_truth():
    task = TASKS['default']
    batch = draw(task, jax.random.key(0), ROWS)
    kind, truth = np.asarray(batch.meta['kind']), np.asarray(batch.meta['truth'])
    answers = jnp.where(kind == event_log.DETAIL, batch.targets[:, -1], TRUE)
    outputs = jax.nn.one_hot(jnp.broadcast_to(answers[:, None], batch.inputs.shape), task.output_size)
    metrics = {name: float(mean.value()) for name, mean in jax.jit(task.metrics)(outputs, batch).items()}
    assert metrics['detail_accuracy'] == metrics['fact_accuracy'] == 1
    assert metrics['order_accuracy'] == pytest.approx(truth[kind == event_log.ORDER].mean())
    assert metrics['fib_accuracy'] == pytest.approx(np.mean(kind[truth == 0] == event_log.DETAIL))
    neither = task.metrics(jax.nn.one_hot(batch.inputs, task.output_size), batch)
    assert float(neither['accuracy'].value()) == 0


def test_the_facts_are_the_protocols():
    facts = FactsAndFibs().facts()
    assert facts['chance_accuracy'] == facts['statement_only_forced_choice'] == 0.5
    assert facts['coins_pairwise'] == 0.25 and facts['no_knowledge_ceiling_pairwise'] == 0.5
    assert facts['statement_only'] == np.log(2)


@pytest.mark.slow
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding():
    assert_one_key_is_one_batch(TASKS['default'], rows=4)


def test_every_token_has_its_word_and_the_default_vocabulary_is_small():
    for task in TASKS.values():
        world = task.world
        assert len(set(world.words)) == len(world.words) == world.vocabulary == task.input_size == task.output_size
        names = world.say([ANSWER, FALSE, TRUE, event_log.NUMBER + 1, world.entity, world.place, world.object])
        assert names == 'ANSWER FALSE TRUE 1 e0 p0 o0'
        assert world.words[event_log.BEFORE] == 'BEFORE' and world.words[FIRST_KIND + event_log.CAUSE] == 'cause'
        assert world.words[event_log.HAPPY] == 'HAPPY' and world.words[-1] == f'o{task.objects - 1}'
    assert TASKS['default'].input_size == 54


BAD = {
    'entities': (dict(entities=2), 'entities=2 must be at least 3'),
    'most': (dict(most=1), 'most=1 must be at least 2'),
    'unknown': (dict(claims=('order', 'colour')), 'must be one or more, each once, of last_state, order'),
    'none': (dict(claims=()), r'claims=\(\) must be one or more'),
    'twice': (dict(claims=('order', 'order')), 'each once'),
    'noise': (dict(noise=1.5), r'noise=1.5 must lie in 0\.\.1'),
    'claims_per_row': (dict(claims_per_row=0), 'claims_per_row=0 must be at least 1'),
    'room': (dict(claims_per_row=5), 'events=16 must be at least 20: 4 for each of the claims about one log, here 5'),
    'persons': (dict(claims_per_row=4, entities=7, claims=('detail',)), 'entities=7 must be at least 8'),
    'events': (dict(events=3), 'events=3 must be at least 4: 4 for each of the claims about one log, here 1'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        FactsAndFibs(**fields)


def test_more_claims_than_a_log_has_room_or_persons_for_are_refused():
    with pytest.raises(ValueError, match='events=16 must be at least 32'):
        FactsAndFibs().pairs(jax.random.key(0), 1, 8)
    with pytest.raises(ValueError, match='entities=12 must be at least 14, so that none of the claims'):
        FactsAndFibs(events=64, claims=('detail',)).pairs(jax.random.key(0), 1, 7)


def test_the_sizes_of_the_sheet_fit():
    FactsAndFibs(events=256).check_claims(8)
    FactsAndFibs(events=4096).check_claims(16)


def test_a_tiny_copy_keeps_the_choices():
    task = FactsAndFibs(claims=('order', 'detail'), noise=0.1)
    tiny = task.tiny()
    assert tiny.events < task.events and tiny.input_size < task.input_size
    assert (tiny.claims, tiny.noise) == (task.claims, task.noise)
    assert jax.eval_shape(lambda key: tiny.sample(key, 2), jax.random.key(0)).inputs.shape == (2, 31)
    several = FactsAndFibs(events=24, claims_per_row=6).tiny()
    assert jax.eval_shape(lambda key: several.sample(key, 2), jax.random.key(0)).inputs.shape == (2, 38)
