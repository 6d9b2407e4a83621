"""Circuits: faithfulness is what it says, and what does nothing is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.understanding import ablate, capture, circuit
from tests.understanding.opened import OTHER, RECURRENT, THREE, TOKENS, metric, opened, padded


def silent(name, tokens=TOKENS, **kwargs):
    model, params = opened(name)
    return model, params, ablate.prepare(model, params, tokens, kind='zero', **kwargs)


@pytest.mark.parametrize('name', [*THREE, *RECURRENT])
def test_faithfulness_goes_from_nothing_to_the_model(name):
    model, params, parts = silent(name)
    some = [(0, 0)]
    found = circuit.measure_faithfulness(model, params, TOKENS, metric, parts, [some, [], parts.parts])
    runs = [
        metric(capture.run(model, params, TOKENS, edits=parts.edits(~parts.table(kept))).outputs)
        for kept in (some, [], parts.parts)
    ]
    np.testing.assert_allclose(found, [(run - runs[1]) / (runs[2] - runs[1]) for run in runs], atol=1e-4)
    np.testing.assert_allclose(runs[2], metric(model.apply({'params': params}, TOKENS)[0]), atol=1e-5)


def planted():
    """A model whose heads do nothing but for three, and these heads."""
    model, params, parts = silent('scanned')
    heads = [(0, 1), (1, 0), (1, 3)]
    keep = jnp.zeros((2, 4)).at[tuple(zip(*heads))].set(1)
    params = jax.tree.map(lambda leaf: leaf, params)
    projection = params['body']['block_0']['mixer']['o_proj']
    projection['kernel'] = projection['kernel'] * keep[:, :, None, None]
    return model, params, parts, heads


def test_planted_heads_are_the_circuit_by_both_ways():
    model, params, parts, heads = planted()
    effects = ablate.ablate_heads(model, params, TOKENS, metric, kind='zero')
    grown = circuit.grow(model, params, TOKENS, metric, parts, effects.ranked(), faithful=0.999)
    pruned = circuit.prune(model, params, TOKENS, metric, parts, tolerance=1e-3)
    assert set(grown.parts) <= set(heads) and set(pruned.parts) <= set(heads)
    assert list(pruned.parts) == heads
    np.testing.assert_allclose(pruned.faithfulness, 1, atol=1e-3)
    np.testing.assert_allclose(grown.curve[0], 0, atol=1e-5)
    np.testing.assert_allclose(grown.curve[3:], 1, atol=1e-3)  # the others do nothing
    assert len(grown.curve) == 9 and len(pruned.curve) == 8


def test_everything_goes_with_a_large_tolerance_and_unnamed_parts_are_kept():
    model, params, parts = silent('scanned')
    assert circuit.prune(model, params, TOKENS, metric, parts, tolerance=1e3).parts == ()
    kept = circuit.prune(model, params, TOKENS, metric, parts, parts.parts[1:], tolerance=1e3)
    assert kept.parts == ((0, 0),)
    one = circuit.measure_faithfulness(model, params, TOKENS, metric, parts, [kept.parts])
    np.testing.assert_allclose(kept.faithfulness, one[0], atol=1e-4)


def test_padding_has_no_say():
    model, params, parts = silent('scanned')
    rows, context = padded(TOKENS, left=0)
    last = lambda y: metric(y[:, :7])
    behind = circuit.measure_faithfulness(
        model, params, rows, last, silent('scanned', rows, context=context)[2], [[(0, 0)]], context=context
    )
    plain = circuit.measure_faithfulness(model, params, TOKENS, metric, parts, [[(0, 0)]])
    np.testing.assert_allclose(behind, plain, atol=1e-4)


def test_what_cannot_be_found_is_named():
    model, params, parts = silent('scanned')
    with pytest.raises(ValueError, match=r'no beginning reaches faithful=1000.0: .* with . parts'):
        circuit.grow(model, params, OTHER, metric, parts, [(0, 0)], faithful=1e3)
    with pytest.raises(ValueError, match=r'head \(1, 7\): no such head, layer 1 has 4'):
        circuit.prune(model, params, TOKENS, metric, parts, [(1, 7)])


def test_the_chance_of_an_overlap_is_that_of_random_circuits():
    parts = [(n // 4, n % 4) for n in range(12)]
    first, second = parts[:4], parts[2:7]
    found = circuit.overlap(first, second, among=12)
    assert (found.shared, found.of_union, found.of_smaller) == (2, 2 / 7, 0.5)
    draws = [set(np.random.default_rng(seed).permutation(12)[:5].tolist()) for seed in range(4000)]
    share = np.mean([len(draw & {0, 1, 2, 3}) >= 2 for draw in draws])
    assert abs(found.chance - share) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert circuit.overlap(first, first, among=12).chance == 1 / 495
    with pytest.raises(ValueError, match='circuits of 0 and 4 parts must each have some of among=12'):
        circuit.overlap([], first, among=12)
