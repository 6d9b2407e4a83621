"""The memories hold on the hardest keys at their strongest writes; what is known to fail is seen to fail."""

import json

import jax
import numpy as np
import pytest

from experiments import layer_gradients, stability
from jattn.memories import MEMORIES
from tests.programs import call

CASES = stability.cases()
FAST = ('deltanet_chunk_64_step_1', 'moneta_norm_not_clamped')  # fail within a thousand tokens
QUICK = ('deltanet', 'titans_linear', 'titans_lmm', 'yaad', 'memora', 'moneta', 'rwkv7')


def failures(name, tokens):
    return set(stability.failures(stability.drive(CASES[name], tokens, jax.random.key(0))))


@pytest.mark.parametrize('name', QUICK)
def test_a_memory_holds_at_its_strongest_writes(name):
    assert failures(name, 1024) <= set(CASES[name].fails)


@pytest.mark.parametrize('name', FAST)
def test_what_is_known_to_fail_is_seen_to_fail(name):
    assert failures(name, 1024) == set(CASES[name].fails)


@pytest.mark.parametrize('name', ['moneta', 'yaad', 'omega'])
def test_outputs_stay_small_where_weights_walk_away(name):
    rows = stability.drive(CASES[name], 1024, jax.random.key(0))
    assert all(row['finite'] and row['output'] < 10 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_over_thousands_of_tokens_nothing_fails_that_is_not_known_to(name):
    found = failures(name, 8192)
    assert found <= set(CASES[name].fails)
    if name in FAST:
        assert found


def test_a_sum_without_forgetting_grows_linearly_on_one_key_and_a_delta_rule_does_not():
    growth = {}
    for name in ('linear_attention', 'deltanet'):
        rows = stability.drive(CASES[name], 1024, jax.random.key(0))
        growth[name] = next(row['growth'] for row in rows if row['keys'] == 'identical')
    np.testing.assert_allclose(growth['linear_attention'], 8, rtol=0.01)
    assert growth['deltanet'] < 1.01


@pytest.mark.parametrize('name', ['moneta', 'memora'])
def test_the_outer_gradient_of_a_deep_memory_does_not_grow_with_the_row(name):
    assert layer_gradients.measure(MEMORIES[name], jax.random.key(1))['verdict'] == 'holds'


@pytest.mark.slow
@pytest.mark.parametrize('name', layer_gradients.literal())
def test_the_outer_gradient_explodes_where_a_memory_forgets_towards_zero_as_printed(name):
    assert layer_gradients.measure(layer_gradients.literal()[name], jax.random.key(1))['verdict'] == 'EXPLODES'


@pytest.mark.slow
@pytest.mark.parametrize('name', MEMORIES)
def test_the_outer_gradient_of_no_member_grows_with_the_row(name):
    assert layer_gradients.measure(MEMORIES[name], jax.random.key(1))['verdict'] == 'holds'


def test_tokens_are_what_their_kind_says():
    cfg = stability.shrink(CASES['gated_deltanet'].memory)
    names = tuple((kind, decay) for decay in stability.DECAYS for kind in stability.KINDS)
    tokens = stability.draw_tokens(cfg, None, names, 64, jax.random.key(0), np.int32(64))
    assert tokens.k.dtype == 'bfloat16' and tokens.k.shape == (8, 64, 2, 16)
    k, v = np.asarray(tokens.k, np.float32), np.asarray(tokens.v, np.float32)
    np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, atol=0.01)
    assert np.ptp(k[1], axis=0).max() == 0 and np.ptp(v[1], axis=0).max() == 0
    np.testing.assert_array_equal(v[2, 1:], -v[2, :-1])
    cosine = np.einsum('thk,shk->hts', k[3], k[3])
    assert cosine.min() > 0.95 and cosine[0, 0, 1:].max() < 0.9999
    assert set(np.unique(tokens.log_decay[:4])) == {np.float32(stability.FORGET)} and not np.any(tokens.log_decay[4:])
    assert set(np.unique(tokens.step)) == {1.0}


def test_the_program_prints_a_table_and_writes_it(tmp_path, capsys):
    options = ['--members=retnet,deltanet_chunk_64_step_1', '--tokens=512', f'--out={tmp_path}']
    assert call(stability, *options) == 0
    printed = capsys.readouterr().out
    assert 'retnet: holds' in printed and 'deltanet_chunk_64_step_1: UNSTABLE at decay none' in printed
    written = json.loads((tmp_path / 'stability.json').read_text())
    assert len(written['states']) == 12 and list(written['gradients']) == ['retnet']
    assert call(stability, '--members=retnett') == 2
    assert "did you mean 'retnet'?" in capsys.readouterr().err
