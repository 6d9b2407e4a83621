"""Attention calibration: the sheet's exact checks on patterns, and on models heads, padding, packing, a state.

Checked against a loop over queries and keys that follows the paper's text.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.nn.longheads_cache import LongHeadsCache
from jattn.taps import Edit
from jattn.understanding import capture
from jattn.understanding.calibrate import Calibration, calibrate, columns, kept, prepare, search
from tests.understanding.opened import THREE, TOKENS, metric, opened, padded

CAUSAL = jnp.tril(jnp.ones((1, 12, 12), bool))
SCORES = 2 * jax.random.normal(jax.random.key(0), (2, 3, 12, 12))
SCORES = SCORES.at[..., jnp.array([2, 5, 7])].add(3.0)
PATTERN = jax.nn.softmax(jnp.where(CAUSAL[:, None], SCORES, -jnp.inf))
run = jax.jit(calibrate, static_argnames=('relative', 'min_rows', 'keep_first'))


def by_hand(pattern, beta=0.4, threshold=0.1, keep_first=True, min_rows=1):
    """One head, causal: the calibrated pattern and its sinks."""
    tokens = len(pattern)
    means = [pattern[k:, k].mean() for k in range(tokens)]
    sinks = [k for k in range(tokens) if means[k] > threshold and tokens - k >= min_rows][int(keep_first) :]
    result = pattern.copy()
    for q in range(tokens):
        others = [k for k in range(q + 1) if k not in sinks]
        total = sum(pattern[q, k] for k in others)
        freed = (1 - beta) * sum(pattern[q, k] for k in sinks)
        if total > 0:
            for k in range(tokens):
                result[q, k] = beta * pattern[q, k] if k in sinks else pattern[q, k] * (1 + freed / total)
    return result, sinks


@pytest.mark.parametrize('options', [{}, dict(threshold=0.2), dict(keep_first=False), dict(min_rows=4)])
def test_it_is_the_papers_loop(options):
    found = run(PATTERN, CAUSAL, **options)
    sizes = set()
    for row in range(2):
        for head in range(3):
            expected, sinks = by_hand(np.asarray(PATTERN[row, head], np.float64), **options)
            sizes.add(len(sinks))
            np.testing.assert_allclose(found[row, head], expected, atol=1e-6)
    assert max(sizes) > 1


def test_rows_sum_to_one_and_the_future_stays_exactly_zero():
    found = run(PATTERN, CAUSAL)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-6)
    assert found.min() >= 0 and jnp.all(jnp.where(CAUSAL, 0, found) == 0)
    assert jnp.abs(found - PATTERN).max() > 0.1


def test_it_is_the_identity_where_nothing_is_damped():
    np.testing.assert_array_equal(run(PATTERN, CAUSAL, beta=1.0), PATTERN)
    np.testing.assert_array_equal(run(PATTERN, CAUSAL, threshold=1.1), PATTERN)
    alone = jnp.zeros((1, 1, 6, 6)).at[..., 0].set(0.8).at[..., 0, 0].set(1.0)
    alone += jnp.diag(0.2 * (jnp.arange(6) > 0))[None, None]
    assert by_hand(np.asarray(alone[0, 0]), keep_first=False, threshold=0.5)[1] == [0]  # the only sink is the first
    np.testing.assert_array_equal(run(alone, CAUSAL[:, :6, :6], threshold=0.5), alone)


def test_others_keep_their_ratios_and_sinks_become_beta_of_theirs():
    found, before = np.asarray(run(PATTERN, CAUSAL, beta=0.3))[0, 0], np.asarray(PATTERN)[0, 0]
    sinks = by_hand(before)[1]
    assert sinks
    np.testing.assert_allclose(found[:, sinks], np.float32(0.3) * before[:, sinks], rtol=1e-6)
    for q in range(1, 12):
        gains = [found[q, k] / before[q, k] for k in range(q + 1) if k not in sinks]
        np.testing.assert_allclose(gains, gains[0], rtol=1e-5)


def test_beta_zero_deletes_the_sinks():
    found = run(PATTERN, CAUSAL, beta=0.0)
    sinks = jnp.array(by_hand(np.asarray(PATTERN[1, 2]))[1])
    assert sinks.size
    scores = jnp.where(CAUSAL[0], SCORES[1, 2], -jnp.inf).at[:, sinks].set(-jnp.inf)
    np.testing.assert_allclose(found[1, 2], jax.nn.softmax(scores), atol=1e-6)


def test_a_relative_threshold_is_a_number_over_the_documents_tokens():
    found = run(PATTERN, CAUSAL, threshold=2.4, relative=True)
    np.testing.assert_array_equal(found, run(PATTERN, CAUSAL, threshold=0.2))
    two = CAUSAL & (jnp.arange(12)[:, None] // 6 == jnp.arange(12)[None] // 6)[None]
    packed = jnp.zeros_like(PATTERN).at[:, :, :6, :6].set(PATTERN[:, :, :6, :6])
    packed = packed.at[:, :, 6:, 6:].set(PATTERN[:, ::-1, :6, :6])
    alone = run(PATTERN[:, :, :6, :6], CAUSAL[:, :6, :6], threshold=1.2, relative=True)
    found = run(packed, two, threshold=1.2, relative=True)
    np.testing.assert_allclose(found[:, :, :6, :6], alone, atol=1e-6)
    np.testing.assert_allclose(found[:, :, 6:, 6:], alone[:, ::-1], atol=1e-6)
    assert jnp.all(jnp.where(two, 0, found) == 0)


def test_running_columns_give_the_last_row_of_the_whole_prompt():
    whole = run(PATTERN, CAUSAL)
    before = columns(PATTERN[:, :, :5], CAUSAL[:, :5]) + columns(PATTERN[:, :, 5:11], CAUSAL[:, 5:11])
    last = run(PATTERN[:, :, 11:], CAUSAL[:, 11:], before=before)
    np.testing.assert_allclose(last, whole[:, :, 11:], atol=1e-6)


def heads_of(model, params, tokens, **options):
    return prepare(model, params, tokens, threshold=0.12, **options)


@pytest.mark.parametrize('name', THREE)
def test_a_models_edit_is_the_function_and_changes_nothing_before_its_layer(name):
    model, params = opened(name)
    heads = heads_of(model, params, TOKENS)
    layer = list(heads.counts)[-1]
    sites = ['pattern', 'resid_pre']
    plain = capture.run(model, params, TOKENS, sites=sites)
    edits = heads.edits(heads.table([(layer, 1), (layer, 2)]))
    found = capture.run(model, params, TOKENS, sites=sites, edits=edits)
    before, after = plain.at('pattern', layer), found.at('pattern', layer)
    visible = jnp.tril(jnp.ones((1, 7, 7), bool))
    expected = run(before, visible, threshold=0.12).at[:, jnp.array([0, 3])].set(before[:, jnp.array([0, 3])])
    np.testing.assert_allclose(after, expected, atol=1e-6)
    assert jnp.abs(after - before).max() > 0.01 and jnp.abs(found.outputs - plain.outputs).max() > 1e-3
    for lower in range(layer + 1):
        np.testing.assert_array_equal(found.at('resid_pre', lower), plain.at('resid_pre', lower))
    none = capture.run(model, params, TOKENS, sites=['pattern'], edits=heads.edits(heads.table([])))
    np.testing.assert_array_equal(none.outputs, capture.run(model, params, TOKENS, sites=['pattern']).outputs)


def test_padding_and_packing_change_nothing():
    model, params = opened('scanned')
    alone = heads_of(model, params, TOKENS)
    every = alone.table(alone.parts)
    expected = capture.run(model, params, TOKENS, edits=alone.edits(every)).outputs
    rows, context = padded(TOKENS)
    heads = heads_of(model, params, rows, context=context)
    found = capture.run(model, params, rows, edits=heads.edits(every), context=context).outputs
    np.testing.assert_allclose(found[:, 2:9], expected, atol=1e-4)
    both = jnp.concatenate([TOKENS, TOKENS[::-1]], axis=1)
    context = Context(segments=jnp.repeat(jnp.array([[1, 2]]), 7, axis=1).repeat(2, 0))
    heads = heads_of(model, params, both, context=context)
    found = capture.run(model, params, both, edits=heads.edits(every), context=context).outputs
    np.testing.assert_allclose(found[:, :7], expected, atol=1e-4)
    np.testing.assert_allclose(found[:, 7:], expected[::-1], atol=1e-4)


def test_a_step_behind_a_state_is_the_last_row_of_the_prompt():
    model, params = opened('scanned')
    pattern = capture.run(model, params, TOKENS, sites=['pattern']).at('pattern', 0)
    visible = jnp.tril(jnp.ones((1, 7, 7), bool))
    state = model.cfg.init_state(2, 9)
    state = capture.run(model, params, TOKENS[:, :-1], state=state).state
    earlier = columns(pattern[:, :, :-1], visible[:, :-1])
    earlier = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 2))), earlier)  # a column a slot
    last = dict(inputs=TOKENS[:, -1:], state=state)
    heads = heads_of(model, params, last['inputs'], state=state, before={0: earlier, 1: earlier})
    found = capture.run(model, params, **last, sites=['pattern'], edits=heads.edits(heads.table([(0, 0), (0, 2)])))
    chosen = jnp.array([0, 2])
    expected = run(pattern, visible, threshold=0.12)[:, chosen, -1]
    np.testing.assert_allclose(found.at('pattern', 0)[:, chosen, 0, :7], expected, atol=1e-5)
    assert jnp.abs(expected - pattern[:, chosen, -1]).max() > 0.01


def test_the_search_is_a_loop_over_heads_and_keeps_what_gains():
    model, params = opened('scanned')
    heads = heads_of(model, params, TOKENS)
    found = search(model, params, TOKENS, metric, heads, layers=[0, 1], batch_size=3)
    one = jax.jit(lambda table: metric(capture.run(model, params, TOKENS, edits=heads.edits(table)).outputs))
    before = one(heads.table([]))
    np.testing.assert_allclose(found.before, before, atol=1e-5)
    for part in heads.parts:
        np.testing.assert_allclose(found.at(*part), one(heads.table([part])) - before, atol=1e-4)
    gained = kept(found)
    assert 0 < len(gained) < 8 and all(found.at(*part) > 0 for part in gained)


def test_numbers_under_a_sweep_are_data():
    model, params = opened('scanned')

    def outputs(beta):
        edit = Edit(value=Calibration(beta, jnp.full((), 0.12)))
        return capture.run(model, params, TOKENS, edits={('pattern', 1): edit}).outputs

    found = jax.jit(jax.vmap(outputs))(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(found[0], capture.run(model, params, TOKENS, sites=['pattern']).outputs, atol=1e-5)
    assert jnp.abs(found[1] - found[0]).max() > 1e-3
    slope = jax.jit(jax.grad(lambda beta: outputs(beta)[0, -1, 3]))(jnp.array(0.5))
    assert jnp.isfinite(slope) and slope != 0
    numbers = Calibration(jnp.array([1.0, 0.0]), jnp.full(1, 0.12))  # the layer axis first, for all layers at once
    of_layers = capture.run(model, params, TOKENS, edits={'pattern': Edit(value=numbers)}).outputs
    np.testing.assert_allclose(of_layers, found[1], atol=1e-5)


def test_wrong_requests_are_named():
    model, params = opened('scanned')
    with pytest.raises(ValueError, match='beta=1.5 must lie in 0 .. 1'):
        prepare(model, params, TOKENS, beta=1.5)
    with pytest.raises(ValueError, match='threshold=0 must be above 0'):
        prepare(model, params, TOKENS, threshold=0)
    with pytest.raises(ValueError, match='min_rows=0 must be at least 1'):
        prepare(model, params, TOKENS, min_rows=0)
    heads = prepare(model, params, TOKENS)
    with pytest.raises(ValueError, match=r'layers=\[\] leaves no head; patterns are at layers \[0, 1\]'):
        search(model, params, TOKENS, metric, heads)
    one, other = (Edit(value=Calibration(jnp.ones(()), jnp.ones(()), min_rows=n)) for n in (1, 2))
    with pytest.raises(ValueError, match='edits of one site must be one function'):
        capture.run(model, params, TOKENS, edits={('pattern', 0): one, ('pattern', 1): other})
    with pytest.raises(ValueError, match='value has shape'):
        capture.run(model, params, TOKENS, edits={'pattern': one})
    with pytest.raises(ValueError, match='before holds layers'):
        prepare(model, params, TOKENS, before={0: columns(PATTERN)})
    model, params = opened('mamba')
    with pytest.raises(ValueError, match='no layer of this model has attention patterns'):
        prepare(model, params, TOKENS)


def test_where_queries_choose_their_keys_a_column_is_no_token():
    mixer = SoftmaxConfig(cache=LongHeadsCache(chunk=4, chunks=4))
    cfg = DecoderConfig(width=32, layers=1, mixer=(mixer,), read_in='tokens', input_size=11, output_size=11)
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), TOKENS)['params']
    with pytest.raises(ValueError, match=r'queries of layers \[0\] choose blocks'):
        prepare(cfg.make(), params, TOKENS)
