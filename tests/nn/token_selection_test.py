"""Masks whose gradient is that of a probability, and the best tokens in the order of time."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.token_selection import best_tokens, straight_through

LOGITS = jax.random.normal(jax.random.key(0), (3, 7, 2))
NOISE = jax.random.gumbel(jax.random.key(1), LOGITS.shape)


def test_a_mask_is_hard_and_its_gradient_soft():
    weights = jax.random.normal(jax.random.key(2), (3, 7))
    hard = lambda logits: jnp.sum(weights * straight_through(logits, NOISE, 0.7))
    soft = lambda logits: jnp.sum(weights * jax.nn.softmax((logits + NOISE) / 0.7, axis=-1)[..., 0])
    mask = straight_through(LOGITS, NOISE, 0.7)
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask, jnp.argmax(LOGITS + NOISE, axis=-1) == 0)
    np.testing.assert_allclose(jax.grad(hard)(LOGITS), jax.grad(soft)(LOGITS), atol=1e-7)


def test_noisy_masks_keep_with_the_probability_of_the_softmax():
    logits = jnp.broadcast_to(jnp.array([0.8, 0.0]), (1, 20_000, 2))
    mask = straight_through(logits, jax.random.gumbel(jax.random.key(3), logits.shape))
    probability = 1 / (1 + np.exp(-0.8))
    error = (probability * (1 - probability) / 20_000) ** 0.5
    assert abs(float(mask.mean()) - probability) < 4 * error


def test_the_best_tokens_come_in_the_order_of_time_and_padding_last():
    scores = jax.random.normal(jax.random.key(4), (4, 9))
    real = jnp.array([[True] * 9, [True] * 9, [True] * 5 + [False] * 4, [False] * 9])
    places = np.asarray(best_tokens(scores, real, 5))
    assert places.shape == (4, 5) and np.all(np.diff(places, axis=1) > 0)
    for row in range(2):
        assert set(places[row]) == set(np.argsort(np.asarray(scores[row]))[-5:])
    assert places[2].tolist() == [0, 1, 2, 3, 4]
