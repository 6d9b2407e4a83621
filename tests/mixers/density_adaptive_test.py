"""Density-adaptive attention against the product of its Gaussians, written out; its golden numbers, its invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.mixers.density_adaptive import DensityAdaptiveConfig
from jattn.nn.density import Gaussians, collapse, density_weights, layer_weights, log_density, moments
from tests.mixers.packed import DOCUMENTS, PACKED, X, assert_calls_are, assert_every_document_is, parameters

FEATURES = DensityAdaptiveConfig(width=32, axis='features', heads=3)
TIME = DensityAdaptiveConfig(width=32, heads=2)
CAUSAL = DensityAdaptiveConfig(width=32, heads=1, causal=True)
GOLDEN = np.array([-1.0, 0.0, 1.0, 2.0])
RANDOM = np.random.default_rng(0)


@functools.cache
def run(cfg):
    """The compiled call `(variables, x, context) -> (y, gates)`."""

    @jax.jit
    def call(variables, x, context):
        (y, _), found = cfg.make().apply(variables, x, context, mutable=['taps'])
        return y, found['taps']['gates']

    return call


@functools.cache
def weights_of(form='softmax'):
    """The compiled weights along the last axis, `(x, offset, log_width) -> a`."""
    return jax.jit(lambda x, offset, log_width: density_weights(x, Gaussians(offset, log_width), form=form))


def weights(x, offset, log_width, form='softmax'):
    with jax.enable_x64(True):
        return np.asarray(weights_of(form)(*(np.asarray(a, np.float64) for a in (x, offset, log_width))))


def log_densities(x, offset, log_width):
    """log g_k of every entry among those along the last axis."""
    mu, s2 = x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1) + 1e-8
    z = ((x - mu)[..., None] - offset) / np.sqrt(s2)[..., None]
    return -(z**2) / (2 * np.exp(2 * log_width)) - log_width - np.log(2 * np.pi) / 2


def product(x, offset, log_width, clamp=0.0):
    """The published form along the last axis: densities, multiplied, over their sum."""
    a = np.exp(log_densities(x, offset, log_width)).prod(-1)
    return a / np.maximum(a.sum(-1, keepdims=True), clamp)


def in_logs(x, offset, log_width, shares=None):
    """The same where the product underflows; with `shares` the mixture."""
    log_g = log_densities(x, offset, log_width)
    log_a = log_g.sum(-1) if shares is None else np.logaddexp.reduce(log_g + np.log(shares), axis=-1)
    return np.exp(log_a - np.logaddexp.reduce(log_a, axis=-1, keepdims=True))


def gaussians(heads=(), count=5, seed=0):
    random = np.random.default_rng(seed)
    return 0.5 * random.normal(size=(*heads, count)), 0.3 * random.normal(size=(*heads, count))


def of_head(p, head):
    """A head's offsets and log widths, in float64; and the shares of a mixture."""
    offset, log_width = (np.asarray(p[name], np.float64)[head] for name in ('offset', 'log_width'))
    if 'mixture' not in p:
        return offset, log_width
    shares = np.exp(np.asarray(p['mixture'], np.float64)[head])
    return offset, log_width, shares / shares.sum()


def chunks(count, heads):
    """Where the published heads begin and end: floor(N / H) entries each, the last with the remainder."""
    size = count // heads
    return [(h * size, count if h == heads - 1 else (h + 1) * size) for h in range(heads)]


def over_features(p, x, cfg):
    x = x.astype(np.float64)
    parts = [x[:, a:b] * in_logs(x[:, a:b], *of_head(p, h)) for h, (a, b) in enumerate(chunks(32, cfg.heads))]
    return np.concatenate(parts, axis=1)


def over_time(p, x, cfg):
    x = x.astype(np.float64)
    parts = [
        x[a:b] * in_logs(x[a:b].T, *of_head(p, h)).T for h, (a, b) in enumerate(chunks(len(x), cfg.heads)) if a < b
    ]
    return np.concatenate(parts)


def over_the_past(p, x, cfg):
    """Moments of the whole prefix at every token; each is scored when it comes, by one Gaussian, and no more."""
    x, log_a, out = x.astype(np.float64), [], []
    offset, log_width = of_head(p, 0)
    precision = np.exp(-2 * log_width)
    centre = (precision * offset).sum() / precision.sum()
    for t in range(len(x)):
        mu = x[: t + 1].mean(0)
        s2 = x[: t + 1].var(0, ddof=1) + 1e-8 if t else np.inf
        log_a.append(-precision.sum() * (x[t] - mu - centre) ** 2 / (2 * s2))
        scores = np.array(log_a)
        a = np.exp(scores - scores.max(0))
        out.append(x[t] * a[-1] / a.sum(0))
    return np.array(out)


MIXTURE = {'combine': 'mixture', 'gaussians': 3}
FORMS = {
    'features': (FEATURES, over_features),
    'features[mixture]': (dataclasses.replace(FEATURES, **MIXTURE), over_features),
    'time': (TIME, over_time),
    'time[mixture]': (dataclasses.replace(TIME, **MIXTURE), over_time),
    'causal': (CAUSAL, over_the_past),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_document_of_a_packed_row_is_the_published_product(form):
    assert_every_document_is(*FORMS[form])


def test_golden_numbers():
    a = weights(GOLDEN, [0.0], [0.0])
    with jax.enable_x64(True):
        variance = 1 / np.asarray(moments(jnp.asarray(GOLDEN), 0)[1])
    np.testing.assert_allclose(variance, [5 / 3], atol=2e-8)
    np.testing.assert_allclose(a, [0.17717185, 0.32282815, 0.32282815, 0.17717185], atol=5e-9)
    np.testing.assert_allclose(GOLDEN * a, [-0.17717185, 0, 0.32282815, 0.35434369], atol=1e-8)


@pytest.mark.parametrize('count', [1, 3, 24])
def test_product_form_is_log_form_is_one_gaussian(count):
    x, (offset, log_width) = RANDOM.normal(size=(7, 10)), gaussians(count=count)
    expected = product(x, offset, log_width)
    np.testing.assert_allclose(weights(x, offset, log_width), expected, rtol=1e-9)
    with jax.enable_x64(True):
        all_of_them, one = Gaussians(jnp.array(offset), jnp.array(log_width)), collapse(Gaussians(offset, log_width))
        assert one.offset.shape == (1,)
        for form in (all_of_them, one):
            log_a = log_density(*moments(jnp.asarray(x), -1), form)
            np.testing.assert_allclose(jax.nn.softmax(log_a, -1), expected, rtol=1e-9)


@pytest.mark.parametrize('cfg', [FEATURES, TIME, CAUSAL], ids=['features', 'time', 'causal'])
def test_outputs_are_inputs_times_weights_and_padding_has_none(cfg):
    context = Context(segments=jnp.array(PACKED))
    y, gates = run(cfg)({'params': parameters(cfg)}, X, context)
    np.testing.assert_allclose(y, X * gates, rtol=1e-6)
    if cfg.axis == 'time':
        assert np.all(np.asarray(y)[PACKED == 0] == 0)
    scaled, _ = run(dataclasses.replace(cfg, rescale=True))({'params': parameters(cfg)}, X, context)
    for row, start, end in DOCUMENTS:
        count = np.arange(1, end - start + 1)[:, None] if cfg is CAUSAL else np.zeros((end - start, 32))
        axis, length = (1, 32) if cfg is FEATURES else (0, end - start)
        if cfg is not CAUSAL:
            for a, b in chunks(length, cfg.heads):
                part = np.take(np.asarray(gates)[row, start:end], np.arange(a, b), axis=axis)
                np.testing.assert_allclose(part.sum(axis), 1, rtol=1e-5)
                np.moveaxis(count, axis, 0)[a:b] = b - a
        np.testing.assert_allclose(scaled[row, start:end], y[row, start:end] * count, rtol=1e-5)


def test_wide_gaussians_average_and_narrow_ones_pick_the_entry_nearest_the_mean():
    x = RANDOM.normal(size=(5, 9))
    np.testing.assert_allclose(weights(x, np.zeros(2), np.full(2, 20.0)), 1 / 9, rtol=1e-12)
    nearest = np.argmin(np.abs(x - x.mean(-1, keepdims=True)), axis=-1)
    np.testing.assert_allclose(weights(x, np.zeros(2), np.full(2, -12.0)), np.eye(9)[nearest], atol=1e-12)


def test_a_shift_changes_nothing_and_a_scale_only_through_the_offsets():
    x, (offset, log_width) = RANDOM.normal(size=(5, 10)), gaussians()
    a = weights(x, offset, log_width)
    np.testing.assert_allclose(weights(x + 3, offset, log_width), a, rtol=1e-9)
    np.testing.assert_allclose(weights(3 * x, 3 * offset, log_width), a, rtol=1e-6)  # but for the variance's floor
    assert np.max(np.abs(weights(3 * x, offset, log_width) - a)) > 0.01
    np.testing.assert_allclose(weights(3 * x, 0 * offset, log_width), weights(x, 0 * offset, log_width), rtol=1e-6)


@pytest.mark.parametrize('cfg', [FEATURES, TIME], ids=['features', 'time'])
def test_heads_are_independent_and_permute_with_their_entries(cfg):
    axis = {'features': 2, 'time': 1}[cfg.axis]
    variables = {'params': parameters(cfg)}
    call = lambda x: np.asarray(run(cfg)(variables, x, Context())[0])
    first = chunks(X.shape[axis], cfg.heads)[0][1]
    order = np.arange(X.shape[axis])
    order[:first] = np.roll(order[:first], 2)
    y = call(X)
    np.testing.assert_allclose(call(np.take(X, order, axis)), np.take(y, order, axis), atol=1e-6)
    changed = np.moveaxis(X.copy(), axis, 0)
    changed[first:] *= -2
    z = call(np.moveaxis(changed, 0, axis))
    np.testing.assert_array_equal(*(np.take(out, np.arange(first), axis) for out in (z, y)))
    assert np.max(np.abs(z - y)) > 0.1


def test_gradients_of_many_narrow_gaussians_are_finite_in_float32():
    offset, log_width = (np.float32(a) for a in gaussians(count=24))
    x = np.float32(3 * RANDOM.normal(size=(50, 10)))
    loss = lambda *args: jnp.sum(jnp.sin(weights_of()(*args)))
    for grad in jax.jit(jax.grad(loss, (0, 1, 2)))(x, offset, log_width - 1.5):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0)


def test_widths_never_reach_zero():
    """1 / c^2 of a width that was learned away: finite, and the weights are those of the nearest entry."""
    a = weights_of()(np.float32(GOLDEN), np.float32([0.25]), np.float32([-40.0]))
    np.testing.assert_allclose(a, [0, 0, 1, 0])


@pytest.mark.parametrize('count, expected', [(5, 0.002), (16, 0.21), (24, 0.83)])
def test_the_published_clamp_fires_as_often_as_its_many_gaussians_underflow(count, expected):
    """Ten standard normals, widths exp(normal): where the sum is below 1e-8, the weights do not sum to 1."""
    random = np.random.default_rng(1)
    x, log_width = random.normal(size=(20_000, 10)), random.normal(size=(20_000, 1, count))
    sums = weights(x, np.zeros_like(log_width), log_width, 'clamped_product').sum(-1)
    clamped = np.mean(sums < 1 - 1e-9)
    assert abs(clamped - expected) < 0.3 * expected
    few = slice(0, 200)
    expected = product(x[few], 0.0, log_width[few], clamp=1e-8)
    a = weights(x[few], np.zeros_like(log_width[few]), log_width[few], 'clamped_product')
    np.testing.assert_allclose(a, expected, atol=1e-12)


@pytest.mark.parametrize('cfg', [FEATURES, TIME, CAUSAL], ids=['features', 'time', 'causal'])
def test_the_published_normaliser_is_the_softmax_where_the_clamp_does_not_fire(cfg):
    params = {name: 0.1 * leaf for name, leaf in parameters(cfg).items()}
    context = Context(segments=jnp.array(PACKED))
    y, _ = run(cfg)({'params': params}, X, context)
    published, _ = run(dataclasses.replace(cfg, normalise='clamped_product'))({'params': params}, X, context)
    if cfg is CAUSAL:  # the factor that a group shares depends on its variance, which is another at every token
        assert np.max(np.abs(published - y)) > 1e-4
        params = params | {'offset': 0 * params['offset']}
        y, _ = run(cfg)({'params': params}, X, context)
        published, _ = run(dataclasses.replace(cfg, normalise='clamped_product'))({'params': params}, X, context)
    np.testing.assert_allclose(published, y, atol=1e-5)


def test_causal_outputs_ignore_the_future_and_stream_in_any_calls():
    variables = {'params': parameters(CAUSAL)}
    whole, _ = run(CAUSAL)(variables, X, Context(segments=jnp.array(PACKED)))
    for size in (1, 5):
        assert_calls_are(whole, CAUSAL, variables, X, PACKED, size=size)
    changed, _ = run(CAUSAL)(variables, np.where(np.arange(13)[:, None] > 6, -X, X), Context())
    plain, _ = run(CAUSAL)(variables, X, Context())
    np.testing.assert_array_equal(changed[:, :7], plain[:, :7])


def test_the_running_form_is_the_full_form_of_every_prefix_but_for_when_the_past_was_scored():
    """Its moments are the prefix's, so that wide Gaussians give both 1 / t; else the full form scores the past anew."""
    full = dataclasses.replace(TIME, heads=1)

    def of_prefixes(params):
        segments = np.tril(np.ones((13, 13), np.int32))  # row t holds the first t tokens
        rows = np.broadcast_to(X[0], (13, 13, 32))
        y, _ = run(full)({'params': params}, rows, Context(segments=jnp.array(segments)))
        return np.asarray(y)[np.arange(13), np.arange(13)]

    params = parameters(CAUSAL)
    wide = params | {'log_width': 10 + params['log_width']}
    running = lambda params: np.asarray(run(CAUSAL)({'params': params}, X[:1], Context())[0][0])
    np.testing.assert_allclose(running(wide), of_prefixes(wide), atol=1e-6)
    np.testing.assert_allclose(running(params)[0], X[0, 0])
    assert np.max(np.abs(running(params) - of_prefixes(params))) > 0.1


def test_layer_weights_are_those_of_the_means_over_tokens():
    hidden, offset, width = RANDOM.normal(size=(2, 6, 5, 4)), RANDOM.normal(size=4), np.array([2.0, 1.0, 3.0, 0.5])
    y = hidden.mean(2)
    z = (y - y.mean(1, keepdims=True) - offset) / np.sqrt(y.var(1, keepdims=True, ddof=1) + 1e-8)
    with jax.enable_x64(True):
        a = layer_weights(hidden, offset, width)
    np.testing.assert_allclose(a[:, :, 0], np.exp(-(z**2) / (2 * width)), rtol=1e-12)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'axis': 'bins'}, "axis='bins' must be one of features, time"),
        ({'combine': 'sum'}, "combine='sum' must be one of product, mixture"),
        ({'normalise': 'none'}, "normalise='none' must be one of softmax, clamped_product"),
        ({'heads': 0}, 'heads=0 and gaussians=5 must be at least 1'),
        ({'combine': 'mixture', 'gaussians': 1}, 'gaussians=1 must be at least 2'),
        ({'causal': True}, 'heads=4 are chunks of a document, whose length a causal mixer cannot know'),
        ({'axis': 'features', 'heads': 20, 'width': 32}, 'width=32 over heads=20 leaves chunks of 1'),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DensityAdaptiveConfig(**fields)
    with pytest.raises(ValueError, match='has no state'):
        TIME.init_state(1, 1)
