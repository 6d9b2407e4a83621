"""The timing harness: turns in order, ratios within a turn, honest records."""

import json
import time

import jax.numpy as jnp
import pytest

from experiments.benchmarks import harness


def test_contestants_run_in_turn_after_one_warm_up_each():
    calls = []
    runs = {label: (lambda label=label: calls.append(label)) for label in 'ab'}
    record = harness.compare('order', runs, baseline='a', pairs=4)
    assert ''.join(calls) == 'ab' * 5 and record['pairs'] == 4


def test_long_turns_are_repeated_less_often():
    naps = {label: (lambda: time.sleep(0.02)) for label in 'ab'}
    assert harness.compare('naps', naps, baseline='a', pairs=50, seconds=0.01)['pairs'] == 3


def test_a_record_says_what_ran_where_and_how_fast(tmp_path):
    x = jnp.ones((64, 64))
    runs = {'short': harness.prepare(lambda x: x, x), 'long': lambda: time.sleep(0.02)}
    record = harness.compare('matrix', runs, baseline='long', pairs=3, facts={'N': 64})
    written = json.loads(harness.save('matrix', [record], tmp_path).read_text())
    assert written['comparisons'] == [record]
    assert written['machine']['cores'] >= 1 and written['versions'].keys() == {'python', 'jax', 'jaxlib', 'numpy'}
    found = record['contestants']
    assert found['long']['ratio'] == 1 and found['short']['ratio'] < 0.9
    assert 20 <= found['long']['ms'] < 200
    assert found['short']['temp_bytes'] == 0 and found['long']['temp_bytes'] is None
    assert harness.table([record]).count('matrix') == 2


def test_a_baseline_that_does_not_run_is_named():
    with pytest.raises(ValueError, match="baseline='peer'"):
        harness.compare('nothing', {'ours': lambda: None}, baseline='peer')
