"""Rounded weights: within half a step, on a grid a channel, and nothing but projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.understanding.rounding import round_weights
from tests.understanding.opened import TOKENS, opened

MODEL, PARAMS = opened('scanned')
# The input axes of the kernels of a block, behind the axis of the layers.
INPUTS = {'q_proj': (1,), 'k_proj': (1,), 'v_proj': (1,), 'o_proj': (1, 2), 'in_proj': (1,), 'out_proj': (1,)}


def paths(tree):
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('bits', [8, 4])
def test_every_weight_is_within_half_a_step_of_its_channel(bits):
    before, after = paths(PARAMS), paths(round_weights(MODEL, PARAMS, TOKENS, bits))
    assert set(before) == set(after)
    rounded = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path[-2] for path in rounded} == set(INPUTS)
    assert not any('embed' in path[0] or 'norm' in path[-2] or path[-1] == 'bias' for path in rounded)
    for path in rounded:
        weight, axes = np.asarray(before[path], np.float64), INPUTS[path[-2]]
        scale = np.abs(weight).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
        assert np.all(np.abs(after[path] - weight) <= scale * (0.5 + 1e-4))
        np.testing.assert_allclose(after[path] / scale, np.round(after[path] / scale), atol=1e-3)


def test_32_bits_change_nothing_and_16_are_bfloat16():
    same = round_weights(MODEL, PARAMS, TOKENS, 32)
    jax.tree.map(np.testing.assert_array_equal, same, PARAMS)
    half = paths(round_weights(MODEL, PARAMS, TOKENS, 16))
    for path, weight in paths(PARAMS).items():
        is_projection = bool(set(path) & set(INPUTS)) and path[-1] == 'kernel'
        expected = weight.astype(jnp.bfloat16).astype(weight.dtype) if is_projection else weight
        np.testing.assert_array_equal(half[path], expected)


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match='bits=12 must be one of 2, 3, 4, 5, 6, 7, 8, 16, 32'):
        round_weights(MODEL, PARAMS, TOKENS, 12)
