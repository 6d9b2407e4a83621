"""Pairs in files and answers in words: nothing is lost on the way, and every answer is read as the protocol says."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.facts_and_fibs import GRANULARITIES, KINDS, FactsAndFibs
from jattn.testbeds.pair_records import (
    Pair,
    answer_of,
    as_scores,
    join_pairs,
    metrics_of,
    read_lines,
    tabulate,
    write_lines,
)
from jattn.testbeds.paired_claims import pair_metrics

measure = jax.jit(pair_metrics)


def metrics(s_fact, s_fib, *args, **kwargs):
    return jax.tree.map(float, measure(jnp.asarray(s_fact), jnp.asarray(s_fib), *args, **kwargs))


def test_a_context_with_unequal_numbers_of_facts_and_fibs_is_refused():
    facts = {'Nosferatu': ['a', 'b'], 'Sunrise': ['c']}
    pairs = join_pairs(facts, {'Nosferatu': ['A', 'B'], 'Sunrise': ['C']})
    assert pairs == [('Nosferatu', 0, 'a', 'A'), ('Nosferatu', 1, 'b', 'B'), ('Sunrise', 0, 'c', 'C')]
    with pytest.raises(ValueError, match="context 'Sunrise' has 1 facts and 2 fibs"):
        join_pairs(facts, {'Nosferatu': ['A', 'B'], 'Sunrise': ['C', 'D']})
    with pytest.raises(ValueError, match="context 'Metropolis' has 0 facts and 1 fibs"):
        join_pairs(facts, {'Nosferatu': ['A', 'B'], 'Sunrise': ['C'], 'Metropolis': ['D']})


def test_metrics_are_the_same_from_the_file_and_thresholds_may_change_later(tmp_path):
    task = FactsAndFibs(events=64)
    _, facts, fibs, meta = jax.jit(task.pairs, static_argnums=(1, 2))(jax.random.key(2), 10, 6)
    rng = np.random.default_rng(9)
    s = np.round(rng.normal([[[0.7]], [[0.0]]], 1.0, (2, 10, 6)), 1)  # with ties, some of them None
    s_fact, s_fib = np.where(rng.random(s.shape) < 0.1, np.nan, s).astype(np.float32)
    names = {'kind': KINDS, 'granularity': GRANULARITIES}
    pairs = tabulate(s_fact, s_fib, meta, names)
    with open(tmp_path / 'pairs.jsonl', 'w') as file:
        file.writelines(write_lines(pairs))
    with open(tmp_path / 'pairs.jsonl') as file:
        back = read_lines(file)
    assert back == pairs and len(back) == facts.shape[0] * fibs.shape[1] == 60
    assert back[7] == Pair(
        context=1,
        pair=1,
        kind=KINDS[meta['kind'][1, 1]],
        granularity=GRANULARITIES[meta['granularity'][1, 1]],
        first=int(meta['first'][1, 1]),
        last=int(meta['last'][1, 1]),
        s_fact=float(s_fact[1, 1]),
        s_fib=float(s_fib[1, 1]),
    )
    groups = {f'kind/{name}': np.asarray(meta['kind']).ravel() == i for i, name in enumerate(KINDS)}
    groups |= {
        f'granularity/{name}': np.asarray(meta['granularity']).ravel() == i for i, name in enumerate(GRANULARITIES)
    }
    groups |= {f'context/{i}': np.arange(60) // 6 == i for i in range(10)}
    for threshold in (0.0, 0.5):
        found = metrics_of(back, threshold)
        expected = metrics(s_fact.ravel(), s_fib.ravel(), threshold, groups=groups)
        assert {name: group for name, group in expected['groups'].items() if group['pairs']} == found.pop('groups')
        assert found == {name: expected[name] for name in found}


def test_a_pair_of_several_categories_counts_in_each():
    pairs = [
        Pair(context='a', pair=0, kind='order, cause', s_fact=1.0, s_fib=-1.0),
        Pair(context='b', pair=0, kind='cause', s_fact=None, s_fib=-1.0),
    ]
    found = metrics_of(pairs)
    assert found['pairs'] == 2 and found['pairwise'] == 0.5 and found['none_rate'] == 0.25
    groups = {name: (group['pairs'], group['pairwise']) for name, group in found['groups'].items()}
    assert groups == {'kind/order': (1, 1), 'kind/cause': (2, 0.5), 'context/a': (1, 1), 'context/b': (1, 0)}


def test_lines_are_plain_json_and_keep_infinite_scores_in_their_place():
    pairs = [
        Pair(context=0, pair=0, s_fact=math.inf, s_fib=-math.inf),
        Pair(context=0, pair=1, s_fact=math.nan, s_fib=2.0),
    ]
    lines = write_lines(pairs)
    assert all(line.endswith('}\n') for line in lines) and json.loads(lines[1])['s_fact'] is None
    back = read_lines(['\n', *lines])
    assert metrics_of(back)['pairwise'] == 0.5 and back[1].s_fact is None
    with pytest.raises(ValueError, match='read_lines: line 2 is no pair: .*colour'):
        read_lines([lines[0], '{"colour": 1}'])
    with pytest.raises(ValueError, match='read_lines: line 1 is no pair'):
        read_lines(['{"context": 0, "pa'])


TEXTS = {
    '<answer>TRUE</answer>': (True, True, True, True),
    'False. <ANSWER>\n true \n</ANSWER> False': (True, False, False, True),
    'It is true that he fell, so the claim is FALSE.': (None, True, False, True),
    '<answer>perhaps</answer> true': (None, True, True, True),
    '<answer>TRUE or FALSE</answer>': (None, True, False, True),
    'untrue, falsehood, trueish': (None, None, None, None),
    '': (None, None, None, None),
}


@pytest.mark.parametrize('text', TEXTS)
def test_answers_are_read_from_a_tag_or_from_the_first_or_last_word(text):
    found = tuple(answer_of(text, which) for which in ('tagged', 'first', 'last', 'tagged_or_first'))
    assert found == TEXTS[text]


def test_an_unknown_way_to_read_answers_is_refused():
    with pytest.raises(ValueError, match="which='middle' must be one of tagged, first, last, tagged_or_first"):
        answer_of('TRUE', 'middle')


def test_answers_become_scores_whatever_their_type():
    found = as_scores([True, np.bool_(False), None, 2, np.float32(-0.5)])
    np.testing.assert_array_equal(found, np.array([1, -1, np.nan, 2, -0.5], np.float32))


def test_every_pattern_of_two_parsed_answers_is_scored_as_the_protocol_says():
    answers = (True, False, None)
    for fact, fib in itertools.product(answers, answers):
        found = metrics(as_scores([fact]), as_scores([fib]))
        assert (found['TPR'], found['TNR']) == (fact is True, fib is False)
        assert found['pairwise'] == (fact is True and fib is False)
        assert found['none_rate'] == ((fact is None) + (fib is None)) / 2
