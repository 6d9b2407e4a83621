"""The rerun of paper 57: its lines compare what they name, and a claim behind a state is the claim of the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.mf2 import decoders, judging, protocol
from experiments.papers.mf2.judging import Found
from experiments.papers.mf2.settings import ATTENTION, CONVOLVED, MEMORY_MODELS, SIZES
from experiments.papers.small_models import outputs
from jattn.testbeds import Batch

SIZE = SIZES['tiny']
SHORT, LONG = SIZE.lengths[0], SIZE.lengths[-1]


def judged(accuracy=0.7, pairwise=0.5, choice=0.8, **kinds):
    """What the protocol says, as far as lines read it."""
    groups = {f'kind/{kind}': {'pairwise': kinds.get(kind, pairwise)} for kind in SIZE.kinds}
    rates = {'accuracy': accuracy, 'pairwise': pairwise, 'forced_choice': choice, 'bias_gap': choice - pairwise}
    return {**rates, 'groups': groups | {'granularity/global': {'pairwise': pairwise}}}


def found(at=None, alone=None, apart=1e-6, **rates):
    """One decoder's numbers, alike at all lengths but those in `at`."""
    by_events = {events: judged(**rates) for events in SIZE.lengths} | (at or {})
    return Found(by_events, alone or judged(choice=0.5, pairwise=0.1), apart)


def line_of(lines, words):
    """The one line that says this."""
    [line] = [line for line in lines if words in line.line]
    return line


def test_scorers_that_are_known_come_out_as_the_protocol_says_and_no_other_way():
    known = protocol.measure(SIZE.judged(12), 4, 4000, jax.random.key(0))
    lines = protocol.lines(known)
    assert all(line.holds for line in lines) and len({line.line for line in lines}) == len(lines) == 7
    assert known['a coin for each claim']['pairs'] == 4000
    moved = dict(zip(known, [*list(known.values())[1:], next(iter(known.values()))]))
    assert sum(line.holds for line in protocol.lines(moved)) <= 2
    # Coins: 4.5 standard errors, of a pair won with 1/4 and of a choice of 0, 1/2 or 1.
    rules = {line.line: float(line.expected.split()[-1]) for line in lines}
    assert rules['pairwise of a coin for each claim'] == pytest.approx(4.5 * (0.25 * 0.75 / 4000) ** 0.5, rel=1e-2)
    assert rules['forced choice of a coin for each claim'] == pytest.approx(4.5 * (0.125 / 4000) ** 0.5, rel=1e-2)


def test_detail_is_compared_with_the_better_of_order_and_count():
    runs = {'a': [found(detail=0.6, order=0.2, count=0.5)], 'b': [found(detail=0.6, order=0.7, count=0.5)]}
    lines = decoders.lines(runs, SIZE)
    gap = {name: line_of(lines, f'{name}, {SHORT} events: pairwise of detail') for name in runs}
    assert gap['a'].measured == pytest.approx(0.1) and gap['a'].holds
    assert gap['b'].measured == pytest.approx(-0.1) and not gap['b'].holds


def test_pairwise_is_compared_with_accuracy_only_where_accuracy_leaves_room():
    at = {LONG: judged(accuracy=0.95, pairwise=0.94)}
    good = decoders.lines({'a': [found(at=at, accuracy=0.7, pairwise=0.5)]}, SIZE)
    assert line_of(good, 'pairwise is lower').measured == '2 of 2' and line_of(good, 'pairwise is lower').holds
    at = {LONG: judged(accuracy=0.89, pairwise=0.8)}
    bad = decoders.lines({'a': [found(at=at, accuracy=0.7, pairwise=0.5)]}, SIZE)
    assert line_of(bad, 'pairwise is lower').measured == '2 of 3' and not line_of(bad, 'pairwise is lower').holds


def test_a_claim_without_its_log_must_be_a_coins_choice():
    for choice, holds in ((0.52, True), (0.54, False), (0.46, False)):
        lines = decoders.lines({'a': [found(alone=judged(choice=choice))]}, SIZE)
        assert line_of(lines, 'without the log').holds is holds


def test_a_failed_training_holds_nowhere():
    lines = decoders.lines({'a': [found(), None]}, SIZE)
    assert not any(line.holds for line in lines)
    assert judging.table({'a': [None]}, SIZE, SHORT)[1].split()[1:] == ['nan'] * 9


def test_the_largest_difference_from_scratch_counts():
    runs = {ATTENTION: [found(apart=1e-6), found(apart=2e-4)], 'titans_lmm': [found(apart=9e-5)]}
    lines = decoders.lines(runs, SIZE)
    cache, state = line_of(lines, 'a cache of keys and values'), line_of(lines, 'a recurrent state')
    assert cache.measured == pytest.approx(2e-4) and not cache.holds and state.holds


def test_tables_have_the_sheets_columns_and_drops_stand_beside_attentions():
    runs = {name: [found(at={LONG: judged(pairwise=0.2)}, detail=0.9)] for name in (*MEMORY_MODELS, ATTENTION)}
    head, *rows = judging.table(runs, SIZE, SHORT)
    columns = 'detail last_state order cause count quantifier mean pairwise accuracy bias_gap'
    assert head.split() == columns.split() and len(rows) == 4
    assert rows[0].split() == ['linear_attention', '0.900', *['0.500'] * 6, '0.700', '0.300']
    assert [row.split() for row in judging.table_of_granularity(runs, SHORT)][:2] == [
        ['global'],
        ['linear_attention', '0.500'],
    ]
    drops = decoders.drops(runs, SIZE)
    assert [line.split()[0] for line in drops] == [ATTENTION, *MEMORY_MODELS]
    assert all(f'from {SHORT} to {LONG} events: pairwise +0.300, accuracy +0.000' in line for line in drops)


@pytest.mark.parametrize('name', SIZES)
def test_every_stage_has_the_world_of_the_last_and_every_length_room_for_its_claims(name):
    size = SIZES[name]
    assert {stage.task.world for stage in size.stages} == {size.task.world}
    assert all(stage.task.claims == size.task.claims for stage in size.stages)
    for events in size.lengths:
        size.judged(events).check_claims(size.pairs_of_a_log)
    assert size.judged(9).claims_per_row == 1 and size.lengths[-1] == 4 * size.task.events


@pytest.fixture(scope='module', params=['linear_attention', ATTENTION])
def decoder(request):
    """One that has learned nothing, and the pairs it is judged on."""
    setting = SIZE.setting(request.param)
    pairs = SIZE.judged(SIZE.lengths[1]).pairs(jax.random.key(1), SIZE.contexts, SIZE.pairs_of_a_log)
    variables = jax.jit(setting.module.init)(jax.random.key(0), pairs[0])
    return setting, variables, pairs


def whole_rows(setting, variables, contexts, claims):
    """Log-odds of whole rows in one call, [N, P]."""
    logs = jnp.repeat(contexts, claims.shape[1], axis=0)
    rows = jnp.concatenate([logs, claims.reshape(len(logs), -1)], axis=1)
    said = outputs(setting, variables, Batch(rows, rows, jnp.ones(rows.shape)))
    return np.asarray(setting.data.log_odds(said)).reshape(claims.shape[:2])


def test_a_claim_is_scored_behind_its_own_log_in_pieces_as_in_the_whole_row(decoder):
    setting, variables, (contexts, facts, fibs, _) = decoder
    states = judging.fresh_states(setting, SIZE)
    for piece in jnp.split(contexts, 2, axis=1):
        states = judging.read(setting, SIZE, variables, states, piece)
    scores = judging.score(setting, SIZE, variables, states, facts, fibs)
    expected = [whole_rows(setting, variables, contexts, claims) for claims in (facts, fibs)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.std(expected) > 1e-2
    pairs = contexts, facts, fibs
    assert judging._apart(setting, variables, pairs, scores) < 1e-4
    moved = scores[0], scores[1].at[2, 0].add(1)
    assert judging._apart(setting, variables, pairs, moved) == pytest.approx(1, abs=1e-3)
    alone = judging.score(setting, SIZE, variables, judging.fresh_states(setting, SIZE), facts, fibs)
    np.testing.assert_allclose(alone[0], whole_rows(setting, variables, contexts[:, :0], facts), atol=1e-4)


def test_the_checkers_scores_judge_every_kind_and_granularity_right():
    _, facts, _, meta = SIZE.judged(SHORT).pairs(jax.random.key(1), SIZE.contexts, SIZE.pairs_of_a_log)
    ones = jnp.ones(facts.shape[:2])
    right = judging._metrics((ones, -ones), meta)
    assert right['pairwise'] == 1 and all(group['pairwise'] == 1 for group in right['groups'].values())
    assert {name.split('/')[0] for name in right['groups']} == {'kind', 'granularity'}
    assert np.isnan(judging.of(right, 'kind/none'))


def test_a_training_of_several_stages_ends_on_the_tasks_own_rows_and_quick_mixers_take_more_steps():
    size = SIZES['small']
    stages = {}
    for name in (CONVOLVED, 'titans_lmm'):
        setting, stages[name] = size.setting(name), []
        while setting is not None:
            stages[name].insert(0, (setting.data, setting.steps))
            setting = setting.after
    assert stages['titans_lmm'] == [(stage.task, stage.steps) for stage in size.stages]
    assert stages[CONVOLVED] == [(stage.task, 3 * stage.steps) for stage in size.stages]
    assert size.stages[0].task.events < size.stages[-1].task.events == size.lengths[0]
