"""The table of a chunk against the recurrence it stands for; the exact rule with momentum against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import gated_delta_rule
from jattn.ops.fast_weights import coefficients, momentum_delta_rule

C, W = 7, 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def test_table_is_the_recurrence_of_change_and_momentum():
    a, m, theta = (draw(C, seed=n, low=0.2) for n in range(3))
    gamma, gradients = draw(W - 1 + C, seed=4), draw(W - 1 + C, seed=5, low=-1)
    real = np.array([True, True, False, True, True, False, True])
    a, m, theta = np.where(real, a, 1), np.where(real, m, 1), np.where(real, theta, 0)
    change, momentum = 0.7, -0.3
    table = coefficients(jnp.log(a), jnp.log(m), jnp.array(theta), jnp.array(gamma), jnp.array(real))
    d, s = change, momentum
    for t in range(C):
        if real[t]:
            s = m[t] * s - theta[t] * np.sum(gamma[t : t + W] * gradients[t : t + W])
            d = a[t] * d + s
        read = table.kept[t] * change + table.carried[t] * momentum - table.gradients[t] @ gradients
        np.testing.assert_allclose(read, d, rtol=1e-12)
    last = table.momentum_kept * momentum - table.momentum_gradients @ gradients
    np.testing.assert_allclose(last, s, rtol=1e-12)


def test_constant_gates_have_the_closed_form():
    a, m, theta = 0.9, 0.5, 0.3
    ones = jnp.ones(C)
    table = coefficients(jnp.log(a) * ones, jnp.log(m) * ones, theta * ones)
    n = np.arange(C)[:, None] - np.arange(C)[None, :] + 1
    expected = np.where(n > 0, theta * (a ** np.maximum(n, 0) - m ** np.maximum(n, 0)) / (a - m), 0)
    np.testing.assert_allclose(table.gradients, expected, atol=1e-12)
    t = np.arange(1, C + 1)
    np.testing.assert_allclose(table.carried, m * (a**t - m**t) / (a - m), rtol=1e-12)


def test_reads_before_the_step_are_the_rows_above():
    table = coefficients(jnp.log(draw(C, low=0.2)), None, jnp.array(draw(C, seed=1)))
    above = table.before()
    np.testing.assert_array_equal(above.kept, np.concatenate([[1], table.kept[:-1]]))
    np.testing.assert_array_equal(above.gradients[1:], table.gradients[:-1])
    assert not np.any(above.gradients[0])


def rule(tokens=37, seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, tokens, 3)
    unit = rng.normal(size=(*shape, 5))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    inputs = [rng.normal(size=(*shape, 5)), unit, rng.normal(size=(*shape, 4))]
    gates = [-draw(*shape, seed=1), np.log(draw(*shape, seed=2, low=0.1)), draw(*shape, seed=3)]
    state = tuple(rng.normal(size=(2, 3, 5, 4)) for _ in range(2))
    return [jnp.array(x) for x in inputs + gates], tuple(jnp.array(x) for x in state)


SEGMENTS = jnp.array([[0] * 3 + [2] * 20 + [0] * 2 + [3] * 12, [1] * 9 + [4] * 28], jnp.int32)


@pytest.mark.parametrize('segments', [None, SEGMENTS], ids=['whole', 'packed'])
@pytest.mark.parametrize('chunk', [1, 8, 64])
def test_chunks_with_momentum_equal_the_steps_with_all_gradients(chunk, segments):
    inputs, state = rule()

    def loss(implementation, inputs, state):
        y, after = momentum_delta_rule(
            *inputs,
            initial_state=state,
            return_state=True,
            segments=segments,
            chunk=chunk,
            implementation=implementation,
        )
        return sum(jnp.sum(jnp.sin(x)) for x in (y, *after)), (y, after)

    found, expected = (
        jax.jit(jax.grad(lambda i, s, n=name: loss(n, i, s), argnums=(0, 1), has_aux=True))(inputs, state)
        for name in ('xla', 'reference')
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * max(1, float(jnp.max(jnp.abs(b)))))


def test_without_momentum_it_is_the_delta_rule_with_the_raw_error():
    (q, k, v, log_decay, _, step), _ = rule()
    ours = momentum_delta_rule(q, k, v, log_decay, jnp.full(step.shape, -jnp.inf), step)
    np.testing.assert_allclose(ours, gated_delta_rule(q, k, v, log_decay, step, raw_error=True), atol=1e-12)


def test_one_step_of_one_stores_a_pair_exactly():
    k = jnp.array([0.6, 0.8]).reshape(1, 1, 1, 2)
    v, one = jnp.arange(3.0).reshape(1, 1, 1, 3), jnp.ones((1, 1, 1))
    np.testing.assert_allclose(momentum_delta_rule(k, k, v, None, jnp.log(0.9 * one), one, scale=1.0), v, atol=1e-12)


@pytest.mark.parametrize('chunk', [0, 48])
def test_a_chunk_that_is_no_power_of_two_is_named(chunk):
    inputs, _ = rule(4)
    with pytest.raises(ValueError, match=f'chunk={chunk} must be a power of two'):
        momentum_delta_rule(*inputs, chunk=chunk)
