"""The inner losses: gradients against autodiff in float64, limits, and what a step does with an outlier."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.memories.bias import BIASES, L1, L2, LP, Dot, Erasing, Huber, Robust

C, V = 5, 4
INF = math.inf
EXACT = {
    'dot': Dot(),
    'erasing': Erasing(),
    'l2': L2(),
    'lp': LP(),
    'lp_1.5': LP(p=1.5),
    'lp_unclipped': LP(p=4.0, clip=None),
    'lp_exact': LP(form='exact'),
    'lp_1.5_exact': LP(p=1.5, form='exact'),
    'l1': L1(),
    'l1_exact': L1(form='exact'),
    'huber_vector': Huber(),
    'huber_coordinate': Huber(form='coordinate'),
    'huber_mixture': Huber(form='mixture'),
    'huber_fixed': Huber(threshold=0.7),
    'robust': Robust(radius=0.3),
    'robust_box': Robust(radius=0.3, box=True),
}
STAND_INS = {'lp_tanh': LP(form='tanh'), 'l1_tanh': L1(form='tanh')}
ALL = EXACT | STAND_INS


def rows(seed=0, scale=2.0):
    """Predictions and values [C, V], errors on both sides of every threshold [C] and clip."""
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(C, V)), scale * rng.normal(size=(C, V)), np.array([0.1, 1.0, 2.0, 4.0, 9.0])


def gradient(bias, e, threshold=None):
    """dl/de in float64 of errors [C, V]."""
    with jax.enable_x64(True):
        e = jnp.asarray(e, jnp.float64)
        threshold = None if threshold is None else jnp.full(len(e), threshold, jnp.float64)
        return np.asarray(bias.gradient(e, jnp.zeros_like(e), threshold))


@pytest.mark.parametrize('name', EXACT)
def test_the_gradient_is_that_of_the_loss(name):
    bias = EXACT[name]
    assert bias.is_exact
    with jax.enable_x64(True):
        prediction, value, threshold = map(jnp.asarray, rows())
        truth = jax.jit(jax.grad(lambda p: jnp.sum(bias.loss(p, value, threshold))))(prediction)
        np.testing.assert_allclose(bias.gradient(prediction, value, threshold), truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('name', STAND_INS)
def test_a_printed_stand_in_is_not_the_gradient_of_its_loss(name):
    bias = STAND_INS[name]
    assert not bias.is_exact
    with jax.enable_x64(True):
        e = jnp.full((1, 1), 0.003)
        truth = jax.grad(lambda e: jnp.sum(bias.loss(e, jnp.zeros_like(e))))(e)
        assert abs(bias.gradient(e, jnp.zeros_like(e)) / truth - 1).item() > 0.5


@pytest.mark.parametrize('p', [1.0, 1.5, 3.0])
def test_the_smooth_form_becomes_the_exact_one(p):
    prediction, _, _ = rows()
    exact = gradient(LP(p=p, form='exact'), prediction)
    errors = [np.abs(gradient(LP(p=p, epsilon=eps), prediction) - exact).max() for eps in (1e-2, 1e-4, 1e-6, 1e-14)]
    assert all(after < before / 50 for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize(
    ('p', 'smooth', 'steep', 'gentle'),
    [(1.0, 2.1e-4, 1e-4, 0.54), (1.5, 3.5e-5, 1e-4, 0.181), (3.0, 1.6e-6, 1e-4, 0.0075)],
)
def test_how_far_each_form_is_from_the_exact_one(p, smooth, steep, gentle):
    e = np.linspace(0.05, 2, 4001)[:, None]
    exact = gradient(LP(p=p, form='exact'), e)

    def error(**options):
        return np.abs(gradient(LP(p=p, **options), e) - exact).max()

    assert smooth / 2 < error(form='smooth') < smooth
    assert error(form='tanh', slope=100.0) < steep
    assert 0.9 * gentle < error(form='tanh', slope=10.0) < gentle


def test_two_powers_have_other_names():
    prediction, _, _ = rows()
    for form in ('smooth', 'tanh', 'exact'):
        np.testing.assert_array_equal(gradient(LP(p=1.0, form=form), prediction), gradient(L1(form=form), prediction))
    np.testing.assert_allclose(gradient(LP(p=2.0), prediction), 2 * gradient(L2(), prediction), rtol=1e-12)


def test_beyond_the_clip_a_steep_power_pulls_no_harder():
    e = np.array([[2.9, 3.0, 3.1, 1e6]])
    bounded, free = gradient(LP(), e)[0], gradient(LP(clip=None), e)[0]
    np.testing.assert_allclose(bounded, [free[0], 27, 27, 27], rtol=1e-6)
    np.testing.assert_array_equal(gradient(LP(p=2.0), e), gradient(LP(p=2.0, clip=None), e))


@pytest.mark.parametrize('box', [False, True])
def test_the_robust_loss_is_the_worst_over_shifts_of_the_value(box):
    radius, rng = 0.6, np.random.default_rng(1)
    e = rng.normal(size=3)
    if box:  # a convex function is largest at a corner
        shifts = radius * np.array(list(itertools.product((-1, 1), repeat=3)))
    else:
        shifts = rng.normal(size=(200_000, 3))
        shifts *= radius / np.linalg.norm(shifts, axis=1, keepdims=True)
    worst = (np.square(e - shifts).sum(axis=1) / 2).max()
    with jax.enable_x64(True):
        ours = Robust(radius=radius, box=box).loss(jnp.asarray(e[None]), jnp.zeros((1, 3))).item()
    assert -1e-12 < ours / worst - 1 < (1e-12 if box else 1e-3)


def test_without_a_radius_robust_is_l2():
    prediction, _, _ = rows()
    for box in (False, True):
        np.testing.assert_array_equal(gradient(Robust(radius=0.0, box=box), prediction), gradient(L2(), prediction))


@pytest.mark.parametrize('form', ['vector', 'coordinate', 'mixture'])
def test_huber_without_a_threshold_is_l2(form):
    with jax.enable_x64(True):
        prediction, value, _ = map(jnp.asarray, rows())
        bias, delta = Huber(form=form), jnp.full(C, INF)
        np.testing.assert_allclose(bias.loss(prediction, value, delta), L2().loss(prediction, value), rtol=1e-14)
        pull = jax.vjp(lambda p, d: (bias.loss(p, value, d), bias.gradient(p, value, d)), prediction, delta)[1]
        by_prediction, by_delta = pull((jnp.ones(C), jnp.ones((C, V))))
        np.testing.assert_allclose(by_prediction, prediction - value + 1, rtol=1e-14)
        assert jnp.all(by_delta == 0)
        np.testing.assert_array_equal(bias.gradient(prediction, value, delta), L2().gradient(prediction, value))


def test_huber_with_a_vanishing_threshold_keeps_the_direction_alone():
    e, _, _ = rows()
    tiny = 1e-9
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    np.testing.assert_allclose(gradient(Huber(), e, tiny) / tiny, unit, rtol=1e-12)
    for form in ('coordinate', 'mixture'):
        np.testing.assert_allclose(gradient(Huber(form=form), e, tiny) / tiny, np.sign(e), rtol=1e-12)


def test_at_the_threshold_the_vector_form_goes_on_and_the_mixture_jumps():
    e = np.array([[0.5, 0.5, 0.5, 0.5]])  # of norm 1
    below, above = 1 - 1e-9, 1 + 1e-9
    sizes = {f: [np.linalg.norm(gradient(Huber(form=f), e, d)) for d in (above, below)] for f in ('vector', 'mixture')}
    np.testing.assert_allclose(sizes['vector'], [1, 1], rtol=1e-8)
    np.testing.assert_allclose(sizes['mixture'], [1, math.sqrt(V)], rtol=1e-8)


def test_a_fixed_threshold_takes_the_place_of_the_tokens():
    e, _, _ = rows()
    assert Huber().needs_threshold and not Huber(threshold=0.7).needs_threshold
    np.testing.assert_array_equal(gradient(Huber(threshold=0.7), e), gradient(Huber(), e, 0.7))


def test_only_gradients_linear_in_the_prediction_are_solvable():
    prediction, value, threshold = rows()
    for name, bias in ALL.items():
        a, b, both = (
            np.asarray(bias.gradient(jnp.asarray(p), jnp.asarray(value), jnp.asarray(threshold)))
            for p in (prediction, -value, (prediction - value) / 2)
        )
        assert bias.solvable == bool(np.allclose((a + b) / 2, both, atol=1e-5)), name
        assert bias.is_constant == np.array_equal(a, b), name


@pytest.mark.parametrize('name', ALL)
def test_gradients_and_their_derivatives_are_finite_at_zero_and_far_away(name):
    bias = ALL[name]
    sizes = [0.0, 1e-30, 1e-8, 1e4, 1e10] if name == 'lp_unclipped' else [0.0, 1e-30, 1e-8, 1e10, 1e30]
    # The first coordinate is 0 even where the row is far away.
    e = jnp.array(sizes, jnp.float32)[:, None] * jnp.array([[0.0, 1.0, -1.0, 0.5]], jnp.float32)

    def run(e, threshold):
        out, pull = jax.vjp(lambda e, d: bias.gradient(e, jnp.zeros_like(e), d), e, threshold)
        return out, *pull(jnp.ones_like(out))

    run = jax.jit(run)
    for threshold in (1e-6, 1.0, 1e6):
        out, by_e, by_threshold = run(e, jnp.full(C, threshold, jnp.float32))
        assert out.dtype == jnp.float32
        for array in (out, by_e, by_threshold):
            assert jnp.all(jnp.isfinite(array)), threshold
        if not bias.is_constant:
            assert jnp.all(out[0] == 0) and jnp.all(out[2:, 1] > 0), threshold


@pytest.mark.parametrize(('outliers', 'huber_over_l2'), [(True, 0.5), (False, 1.02)])
def test_a_memory_with_outliers_among_its_values_recalls_with_huber(outliers, huber_over_l2):
    """A matrix, 16 pairs shown 8 times, step .3; 10% of the values are 20 times too large."""
    rng, seeds, pairs, width = np.random.default_rng(0), 16, 16, 32
    k = rng.normal(size=(seeds, pairs, width))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(seeds, pairs, width))
    wrong = (rng.uniform(size=(seeds, pairs)) < 0.1) & outliers
    shown = np.where(wrong[..., None], 20 * v, v)

    def recall(bias):
        def token(w, pair):
            k, v = pair
            return w - 0.3 * bias.gradient((w @ k)[None], v[None])[0][:, None] * k[None, :], None

        def one(k, v):
            return jax.lax.scan(token, jnp.zeros((width, width)), (jnp.tile(k, (8, 1)), jnp.tile(v, (8, 1))))[0]

        w = np.asarray(jax.jit(jax.vmap(one))(k, shown))
        error = np.square(np.einsum('svk,spk->spv', w, k) - v).sum(axis=-1) / np.square(v).sum(axis=-1)
        return np.mean([np.sqrt(error[s][~wrong[s]].mean()) for s in range(seeds)])

    ratio = recall(Huber(threshold=7.0)) / recall(L2())
    assert ratio < huber_over_l2, ratio


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: LP(p=0.5), r'bias.p=0.5 must be finite and at least 1'),
        (lambda: LP(clip=0.0), r'bias.clip=0.0 must be positive'),
        (lambda: LP(form='soft'), r"bias.form='soft' must be one of smooth, tanh, exact"),
        (lambda: L1(epsilon=0.0), r'bias.epsilon=0.0 must be positive'),
        (lambda: Huber(form='row'), r"bias.form='row' must be one of vector, coordinate, mixture"),
        (lambda: Huber(threshold=-1.0), r'bias.threshold=-1.0 must be positive'),
        (lambda: Robust(radius=-1.0), r'bias.radius=-1.0 must be finite and at least 0'),
        (lambda: Huber().loss(jnp.zeros((1, 1)), jnp.zeros((1, 1))), r'bias.threshold=None: every token must bring'),
    ],
)
def test_a_wrong_choice_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_holds_every_kind_once():
    assert [type(bias) for bias in BIASES.values()] == [Dot, L2, Erasing, LP, L1, Huber, Robust]
    assert len(set(BIASES.values())) == len(BIASES)
