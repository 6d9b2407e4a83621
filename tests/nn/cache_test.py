"""Cache policies: what is stored, what is dropped, and NaN past the capacity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig


def run(cfg, capacity, cuts, tokens=12):
    cfg = cfg.tiny()
    x = jax.random.normal(jax.random.key(0), (1, tokens, 32))
    variables = jax.jit(cfg.make().init)(jax.random.key(1), x)
    apply = jax.jit(cfg.make().apply)
    whole, _ = apply(variables, x, Context(), None)
    state, parts = cfg.init_state(1, capacity, jnp.float32), []
    for start, end in zip([0, *cuts], [*cuts, tokens]):
        y, state = apply(variables, x[:, start:end], Context(), state)
        parts.append(y)
    return np.asarray(whole[0]), np.concatenate(parts, axis=1)[0], state


@pytest.mark.parametrize('cuts', [[], [3, 6], list(range(1, 12))], ids=['prefill', 'calls', 'steps'])
def test_past_the_capacity_outputs_are_nan(cuts):
    whole, split, _ = run(SoftmaxConfig(), 7, cuts)
    np.testing.assert_allclose(split[:7], whole[:7], atol=1e-4)
    assert np.all(np.isnan(split[7:]))


@pytest.mark.parametrize('cuts', [[], [3, 6], list(range(1, 12))], ids=['prefill', 'calls', 'steps'])
def test_a_ring_has_constant_size_and_no_bound(cuts):
    cfg = SoftmaxConfig(window=4, sinks=2)
    whole, split, state = run(cfg, 1000, cuts)
    assert state.k.shape[1] == 6
    np.testing.assert_allclose(split, whole, atol=1e-4)
    # Sinks stay, the last `window` tokens are there.
    assert sorted(state.positions[0].tolist()) == [0, 1, 8, 9, 10, 11]


def test_a_ring_of_small_capacity_is_a_plain_cache():
    whole, split, state = run(SoftmaxConfig(window=4, sinks=2), 5, [2])
    assert state.k.shape[1] == 5
    np.testing.assert_allclose(split[:5], whole[:5], atol=1e-4)
    assert np.all(np.isnan(split[5:]))


def test_a_step_reads_the_cache_alone():
    """The compiled step holds no concatenated copy of the cache."""
    cfg = SoftmaxConfig(width=32, heads=4)
    x = jnp.zeros((1, 1, 32))
    variables = cfg.make().init(jax.random.key(0), x)
    state = cfg.init_state(1, 4096, jnp.float32)
    step = jax.jit(cfg.make().apply).lower(variables, x, Context(), state).as_text()
    assert '4097' not in step


def test_non_causal_attention_has_no_state():
    with pytest.raises(ValueError, match='causal=False has no state'):
        SoftmaxConfig(width=32, causal=False).init_state(1, 4)
