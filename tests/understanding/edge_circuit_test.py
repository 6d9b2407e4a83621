"""Circuits of edges: the ends are the two runs, and one edge less is what it is by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.taps import Edit
from jattn.understanding import capture
from jattn.understanding.edge_attribution import attribute_edges
from jattn.understanding.edge_circuit import READERS, measure_edges
from tests.understanding.opened import OTHER, TOKENS, metric, opened

SLOW = pytest.mark.slow
FORMS = ('scanned', *(pytest.param(name, marks=SLOW) for name in ('unrolled', 'hybrid', 'parallel', 'mamba')))


@pytest.mark.parametrize('name', FORMS)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(name):
    model, params = opened(name)
    scores = attribute_edges(model, params, TOKENS, OTHER, metric, components=())
    edges = scores.ranked()
    head = ('z', 1, 0), ('logits', None, None)
    mlp = ('mlp_out', 0, None), ('attn_in', 1, None)
    circuits = [edges, [], *([edge for edge in edges if edge != left] for left in (head, mlp))]
    found = measure_edges(model, params, TOKENS, OTHER, metric, circuits, batch_size=2)
    np.testing.assert_allclose(found[:2], [1, 0], atol=2e-3)

    mine, other = (capture.run(model, params, tokens, sites=['z', 'mlp_out']) for tokens in (TOKENS, OTHER))
    whole = metric(mine.outputs) - metric(other.outputs)
    after = lambda edits: metric(capture.run(model, params, TOKENS, edits=edits).outputs)
    # The last layer's head, which only the last feed-forward reads beside the outputs: its edge there is kept.
    first = jnp.arange(mine.at('z', 1).shape[2]) == 0
    swap = {('z', 1): Edit(value=other.at('z', 1), mask=first[None, None, :, None])}
    kept = capture.run(model, params, TOKENS, sites=['mlp_out']).at('mlp_out', 1)
    expected = after(swap | {('mlp_out', 1): Edit(value=kept)})
    np.testing.assert_allclose(found[2], (expected - metric(other.outputs)) / whole, rtol=1e-2, atol=2e-3)
    added = other.at('mlp_out', 0) - mine.at('mlp_out', 0)
    expected = after({('attn_in', 1): Edit(add=added)})
    np.testing.assert_allclose(found[3], (expected - metric(other.outputs)) / whole, rtol=1e-2, atol=2e-3)


def test_what_is_no_edge_is_named():
    model, params = opened('scanned')
    for edge in (
        (('mlp_out', 1, None), ('attn_in', 0, None)),  # backwards
        (('embed', None, None), ('q', 0, 0)),  # readers are whole parts
    ):
        with pytest.raises(ValueError, match='no edge .* in this model; its readers are whole parts'):
            measure_edges(model, params, TOKENS, OTHER, metric, [[edge]])
    with pytest.raises(ValueError, match="block='sandwich' normalises what is added"):
        measure_edges(*opened('sandwich'), TOKENS, OTHER, metric, [[]])


def test_readers_are_those_of_the_scores():
    model, params = opened('scanned')
    scores = attribute_edges(model, params, TOKENS, OTHER, metric)
    circuit = scores.connected(6, sites=READERS)
    assert {reader[0] for _, reader in circuit} <= set(READERS) and len(circuit) <= 6
    assert np.isfinite(measure_edges(model, params, TOKENS, OTHER, metric, [circuit, []])).all()
