"""The momentum copy, and the contrast of long and short clips."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.training.contrast import follow, info_nce, long_short_loss


def test_a_copy_that_follows_constant_parameters_approaches_them_geometrically():
    params, start = {'w': jnp.array([1.0, -2.0])}, {'w': jnp.array([5.0, 3.0])}
    copy = start
    for _ in range(7):
        copy = follow(copy, params, 0.1)
    np.testing.assert_allclose(copy['w'], params['w'] + 0.9**7 * (start['w'] - params['w']), rtol=1e-5)


def test_pairs_among_orthogonal_others_cost_what_the_temperature_says():
    for batch, temperature in ((4, 0.1), (16, 0.5), (16, 1.0)):
        x = 3.0 * jnp.eye(batch)
        expected = np.log1p((batch - 1) * np.exp(-1 / temperature))
        np.testing.assert_allclose(info_nce(x, x, temperature).value(), expected, atol=1e-6)


def encode(params, clip, shown):
    return jnp.tanh(jnp.mean(jnp.where(shown[:, :, None], clip, 0), axis=1) @ params)


LONG, SHORT = jax.random.normal(jax.random.key(0), (2, 5, 8, 3))
PARAMS, COPY = jax.random.normal(jax.random.key(1), (2, 3, 4))


def test_the_copy_has_no_gradient_and_the_parameters_have():
    loss = lambda params, copy: long_short_loss(encode, params, copy, LONG, SHORT, jax.random.key(2)).value()
    own, copied = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, COPY)
    assert np.all(np.asarray(copied) == 0) and np.all(np.isfinite(own)) and np.any(np.asarray(own) != 0)


def test_both_terms_together_do_not_know_long_from_short():
    loss = lambda *clips: float(long_short_loss(encode, PARAMS, COPY, *clips, jax.random.key(2), masked=0.0).value())
    np.testing.assert_allclose(loss(LONG, SHORT), loss(SHORT, LONG), rtol=1e-6)
    everything = jnp.ones(LONG.shape[:2], bool)
    one = lambda query, key: float(
        info_nce(encode(PARAMS, query, everything), encode(COPY, key, everything), 0.1).value()
    )
    assert abs(one(SHORT, LONG) - one(LONG, SHORT)) > 1e-3
    np.testing.assert_allclose(one(SHORT, LONG) + one(LONG, SHORT), loss(LONG, SHORT), rtol=1e-5)


def test_queries_alone_are_masked():
    seen = []

    def watched(params, clip, shown):
        seen.append((params is COPY, float(jnp.mean(shown))))
        return encode(params, clip, shown)

    long_short_loss(watched, PARAMS, COPY, LONG, SHORT, jax.random.key(2), masked=0.5)
    assert [share for is_copy, share in seen if is_copy] == [1.0, 1.0]
    assert all(0.2 < share < 0.8 for is_copy, share in seen if not is_copy)
