"""Every closed form against a numerical minimiser of what it minimises, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jattn.memories import proximal

N, ETA, ALPHA, BETA, TOTAL = 6, 0.7, 2.5, 1.8, 3.0
F = {
    'kl': lambda t: t * np.log(t) - t + 1,
    'chi2': lambda t: np.square(t - 1) / 2,
    'reverse_kl': lambda t: t - 1 - np.log(t),
}
SLOPE = {'kl': np.log, 'chi2': lambda t: t - 1, 'reverse_kl': lambda t: 1 - 1 / t}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def arrays(seed=0):
    """g, a W' of any sign, and a W' on the simplex."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=N), rng.normal(size=N), TOTAL * rng.dirichlet(np.ones(N))


def minimise_each(objective):
    """argmin over every coordinate of a separable convex objective(coordinate's number, w)."""
    brackets = [scipy.optimize.minimize_scalar(functools.partial(objective, n), tol=1e-12).x for n in range(N)]
    return np.array(brackets)


def minimise_on_the_simplex(objective, slope):
    """argmin over w >= 0 with sum TOTAL."""
    result = scipy.optimize.minimize(
        objective,
        np.full(N, TOTAL / N),
        jac=slope,
        method='SLSQP',
        bounds=[(1e-12, None)] * N,
        constraints={'type': 'eq', 'fun': lambda w: w.sum() - TOTAL, 'jac': lambda w: np.ones(N)},
        options={'ftol': 1e-15, 'maxiter': 500},
    )
    return result.x


def test_l2_is_the_argmin():
    g, old, _ = arrays()
    kept = BETA / (BETA + ETA)
    truth = minimise_each(lambda n, w: g[n] * w + (w - old[n]) ** 2 / (2 * ETA) + w**2 / (2 * BETA))
    np.testing.assert_allclose(proximal.l2_step(old, kept, -ETA * kept * g), truth, atol=1e-7)


def test_elastic_net_is_the_argmin():
    g, old, _ = arrays()
    kept = BETA / (BETA + ETA)
    ours = np.asarray(proximal.elastic_net_step(old, kept, -ETA * kept * g, ETA * kept / ALPHA))
    truth = minimise_each(lambda n, w: g[n] * w + (w - old[n]) ** 2 / (2 * ETA) + w**2 / (2 * BETA) + abs(w) / ALPHA)
    np.testing.assert_allclose(ours, truth, atol=1e-7)
    assert 0 < np.sum(ours == 0) < N  # some are gone, some are not


def test_elastic_net_without_l1_is_l2():
    g, old, _ = arrays()
    for smooth in (False, True):
        ours = proximal.elastic_net_step(old, 0.6, -g, 0.0, smooth=smooth)
        np.testing.assert_array_equal(ours, proximal.l2_step(old, 0.6, -g))


def test_the_threshold_of_the_accumulated_gradients_is_the_argmin_of_l1_and_l2():
    a, _, _ = arrays()
    truth = minimise_each(lambda n, w: -a[n] * w + w**2 / 2 + 0.4 * abs(w))
    np.testing.assert_allclose(proximal.soft_threshold(a, 0.4), truth, atol=1e-7)


def test_the_smooth_threshold_is_near_the_hard_one_far_from_the_threshold():
    z = np.array([-50.0, -1e-3, 1e-3, 50.0])
    hard, smooth = (np.asarray(proximal.soft_threshold(z, 0.4, smooth=smooth)) for smooth in (False, True))
    np.testing.assert_allclose(smooth, hard + 0.4 * (1 - 2 / np.pi) * np.sign(hard), atol=1e-2)
    np.testing.assert_array_equal(np.sign(smooth), np.sign(z))


def test_kl_is_the_argmin_on_the_simplex():
    g, _, old = arrays()
    kept = ALPHA / (ALPHA + ETA)
    truth = minimise_on_the_simplex(
        lambda w: g @ w + w @ np.log(w / old) / ETA + w @ np.log(w) / ALPHA,
        lambda w: g + (np.log(w / old) + 1) / ETA + (np.log(w) + 1) / ALPHA,
    )
    np.testing.assert_allclose(proximal.kl_step(old, kept, -ETA * kept * g, TOTAL), truth, atol=1e-6)


def test_kl_without_the_entropy_is_the_exponentiated_gradient():
    g, _, old = arrays()
    truth = old * np.exp(-ETA * g)
    np.testing.assert_allclose(proximal.kl_step(old, 1.0, -ETA * g, TOTAL), TOTAL * truth / truth.sum(), rtol=1e-14)


@pytest.mark.parametrize('name', F)
def test_an_f_divergence_is_the_argmin_on_the_simplex(name):
    g, _, old = arrays()
    truth = minimise_on_the_simplex(
        lambda w: g @ w + old @ F[name](w / old) / ETA, lambda w: g + SLOPE[name](w / old) / ETA
    )
    np.testing.assert_allclose(proximal.f_divergence_step(old, -ETA * g, TOTAL, name), truth, atol=1e-6)


def test_chi2_sets_entries_to_zero_for_good():
    _, _, old = arrays()
    change = np.where(np.arange(N) == 2, -5.0, 0.0)
    step = functools.partial(proximal.f_divergence_step, total=TOTAL, divergence='chi2')
    after = step(old, change)
    assert after[2] == 0 and jnp.all(after[jnp.arange(N) != 2] > 0)
    assert step(after, -change)[2] == 0


def test_the_kl_divergence_is_the_kl_step_without_decay():
    g, _, old = arrays()
    ours = proximal.f_divergence_step(old, -g, TOTAL, 'kl')
    np.testing.assert_allclose(ours, proximal.kl_step(old, 1.0, -g, TOTAL), rtol=1e-13)


@pytest.mark.parametrize('name', F)
def test_the_derivative_of_an_f_divergence_is_that_of_the_implicit_function(name):
    g, direction, old = arrays()
    away = np.random.default_rng(1).normal(size=N) * 0.1
    away -= away.mean()  # along the simplex
    step = functools.partial(proximal.f_divergence_step, total=TOTAL, divergence=name)
    _, ours = jax.jvp(step, (jnp.asarray(old), jnp.asarray(-g)), (jnp.asarray(away), jnp.asarray(direction)))
    h = 1e-5
    truth = (step(old + h * away, -g + h * direction) - step(old - h * away, -g - h * direction)) / (2 * h)
    np.testing.assert_allclose(ours, truth, atol=1e-8)
    assert abs(jnp.sum(ours)) < 1e-10  # the sum is not moved


@pytest.mark.parametrize('name', F)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_an_f_divergence_keeps_sums_and_signs_at_any_size_of_step(name, dtype):
    rng = np.random.default_rng(2)
    weights = jnp.asarray(TOTAL * rng.dirichlet(np.full(N, 0.05), size=4), dtype)  # some entries are nearly 0
    step = functools.partial(proximal.f_divergence_step, total=TOTAL, divergence=name)

    @jax.jit
    def run(weights, change):
        after, pull = jax.vjp(step, weights, change)
        return after, pull(after)

    for size in (0.0, 1e-3, 1.0, 1e3, 1e10):
        after, gradients = run(weights, jnp.asarray(size * rng.normal(size=(4, N)), dtype))
        assert after.dtype == dtype and np.all(after >= 0)
        np.testing.assert_allclose(np.sum(after, axis=-1), TOTAL, rtol=1e-6 if dtype == 'float32' else 1e-14)
        assert all(np.all(np.isfinite(x)) for x in gradients)


def test_an_unknown_divergence_is_named():
    with pytest.raises(ValueError, match="divergence='js' must be one of kl, chi2, reverse_kl"):
        proximal.f_divergence_step(np.ones(2), np.ones(2), 2.0, 'js')


def test_bregman_is_the_argmin():
    g, _, old = arrays()
    old = old / TOTAL

    def minimum(n):
        def objective(w):  # f = w log w + (1 - w) log(1 - w), f' = logit
            divergence = w * np.log(w / old[n]) + (1 - w) * np.log((1 - w) / (1 - old[n]))
            return g[n] * w + divergence / ETA

        return scipy.optimize.minimize_scalar(
            objective, bounds=(1e-12, 1 - 1e-12), method='bounded', options={'xatol': 1e-12}
        ).x

    truth = [minimum(n) for n in range(N)]
    np.testing.assert_allclose(proximal.bregman_step(old, 1.0, -ETA * g), truth, atol=1e-7)


@pytest.mark.parametrize('q', [1.5, 2.0, 3.0, 4.0])
def test_the_lq_dual_map_is_the_argmin(q):
    a, _, _ = arrays()

    def objective(w):
        size = (np.abs(w) ** q).sum() ** (1 / q)
        slope = size ** (2 - q) * np.sign(w) * np.abs(w) ** (q - 1) / (q - 1)
        return size**2 / (2 * (q - 1)) - a @ w, slope - a

    truth = scipy.optimize.minimize(objective, a, jac=True, method='BFGS', options={'gtol': 1e-10}).x
    np.testing.assert_allclose(proximal.lq_dual(a, q), truth, atol=1e-5)
    np.testing.assert_allclose(proximal.lq_dual(proximal.lq_dual_inverse(a, q), q), a, rtol=1e-12)


def test_at_q_2_both_lq_maps_change_nothing():
    a, _, _ = arrays()
    assert proximal.lq_divisor(a, 2.0, 0.3, 3.0) == 1
    np.testing.assert_allclose(proximal.lq_dual(a, 2.0), a, rtol=1e-14)


def test_the_printed_lq_map_is_not_the_dual_one():
    a, _, _ = arrays()
    printed, dual = a / proximal.lq_divisor(a, 4.0, 1e-9, 1e9), proximal.lq_dual(a, 4.0)
    cosine = printed @ dual / (np.linalg.norm(printed) * np.linalg.norm(dual))
    assert 0.8 < cosine < 0.95  # not even its direction
    p = 4 / 3
    np.testing.assert_allclose(printed / np.sign(a), np.abs(a) / np.linalg.norm(a, 4) ** 2, rtol=1e-12)
    np.testing.assert_allclose(
        dual / np.sign(a), 3 * np.abs(a) ** (p - 1) * (np.abs(a) ** p).sum() ** ((2 - p) / p), rtol=1e-12
    )


def test_smoothing_the_lq_dual_map_gives_it_a_slope_at_zero():
    a = jnp.array([1.0, -0.5, 0.0])
    np.testing.assert_allclose(proximal.lq_dual(a, 4.0, 1e-6), proximal.lq_dual(a, 4.0), rtol=1e-5)
    slope = jax.jit(jax.jacobian(lambda a: proximal.lq_dual(a, 4.0, 1e-6)))
    assert 100 < slope(a)[2, 2] < 1000
    h, b = 1e-6, jnp.array([1.0, -0.5, 1e-3])  # where the smoothing is felt
    for n, unit in enumerate(np.eye(3)):
        truth = (proximal.lq_dual(b + h * unit, 4.0, 1e-6) - proximal.lq_dual(b - h * unit, 4.0, 1e-6)) / (2 * h)
        np.testing.assert_allclose(slope(b)[:, n], truth, rtol=1e-5, atol=1e-8)


def test_steps_are_finite_at_zero_and_far_away():
    steps = {
        'hard': lambda w, s: proximal.elastic_net_step(w, 0.9, s, 0.1),
        'smooth': lambda w, s: proximal.elastic_net_step(w, 0.9, s, 0.1, smooth=True),
        'without': lambda w, s: proximal.elastic_net_step(w, 0.9, s, 0.0, smooth=True),
        'dual': lambda w, s: proximal.lq_dual(w + s, 4.0, 1e-6),
        'inverse': lambda w, s: proximal.lq_dual_inverse(w + s, 4.0),
        'printed': lambda w, s: w / proximal.lq_divisor(w + s, 4.0, 0.3, 3.0),
    }
    for name, step in steps.items():
        run = jax.jit(jax.value_and_grad(lambda w, s: jnp.sum(step(w, s)), argnums=(0, 1)))  # noqa: B023
        for size in (0.0, 1e-30, 1e10, 1e30):
            x = jnp.asarray([0.0, size, -size], jnp.float32)
            assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(run(x, 0 * x))), (name, size)
