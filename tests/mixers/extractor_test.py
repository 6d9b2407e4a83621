"""Extractors against their equations document by document, each as a case of the next, and the published indexing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.extractor import ExtractorConfig
from jattn.mixers.softmax import SoftmaxConfig
from jattn.taps import Edit
from jattn.training.optimizer import matrix_axes
from tests.mixers.packed import PACKED, X, assert_calls_are, assert_every_document_is, parameters

D, KINDS = 32, ('she', 'he', 'we', 'me')
LAG = {kind: ExtractorConfig(kind=kind, width=D, window=4) for kind in KINDS}
ABSOLUTE = {kind: ExtractorConfig(kind=kind, width=D, window=13, indexing='absolute') for kind in KINDS}
LONG = np.asarray(jax.random.normal(jax.random.key(3), (2, 60, D)))

over_kinds = pytest.mark.parametrize('kind', KINDS)


@functools.cache
def run(cfg):
    """The compiled call `(params, x, context) -> y`."""
    return jax.jit(lambda params, x, context=Context(): cfg.make().apply({'params': params}, x, context)[0])


def equations(p, x, cfg):
    """The outputs of one document [T, D], from the words of the paper, in float64."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), np.asarray(x, np.float64)

    def term(place, token):
        """E of lag or position `place`."""
        if cfg.kind == 'she':
            return token @ p['filter'][place]
        token = token @ p['v_proj']['kernel']
        return token if cfg.kind == 'me' else token * p['filter'][place]

    z = np.zeros_like(x)
    for t in range(len(x)):
        seen = range(max(0, t - cfg.window + 1), t + 1)
        e = sum(term(t - s if cfg.indexing == 'lag' else s, x[s]) for s in seen) / len(seen) ** 0.5
        gate = x[t] @ p['gate_proj']['kernel']
        if cfg.use_bias:
            e, gate = e + p['bias'], gate + p['gate_proj']['bias']
        z[t] = gate * e
    return z @ p['o_proj']['kernel'] if cfg.out_proj else z


@over_kinds
@pytest.mark.parametrize('table', [LAG, ABSOLUTE], ids=['lag', 'absolute'])
def test_it_is_its_equations_in_every_document(kind, table):
    assert_every_document_is(table[kind], equations)


def test_biases_and_an_output_projection_are_options():
    cfg = dataclasses.replace(LAG['he'], use_bias=True, out_proj=True)
    assert_every_document_is(cfg, equations)
    silenced = {'params': parameters(cfg), 'edits': {'z': Edit(scale=jnp.zeros(()))}}
    np.testing.assert_array_equal(jax.jit(cfg.make().apply)(silenced, X)[0], np.zeros_like(X))


@over_kinds
@pytest.mark.parametrize('size', [1, 5])
def test_step_by_step_equals_parallel_across_many_renewals_of_the_tail(kind, size):
    """By lags of both forms of sums, near and far."""
    cfg = dataclasses.replace(LAG[kind], window=20)
    segments = np.array([[3] * 48 + [0] * 2 + [4] * 10, [0] + [1] * 25 + [2] * 34], np.int32)
    params = parameters(cfg)
    whole = run(cfg)(params, LONG, Context(segments=jnp.array(segments)))
    scale = float(np.max(np.abs(whole)))
    assert_calls_are(whole, cfg, {'params': params}, LONG, segments, size, atol=1e-5 * scale)


@pytest.mark.parametrize('kind', ['she', 'he'])
def test_absolute_indexing_streams_with_a_sum_as_its_state(kind):
    cfg = ABSOLUTE[kind]
    whole = run(cfg)(parameters(cfg), X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(whole, cfg, {'params': parameters(cfg)}, X, PACKED, size=5, atol=2e-5)
    assert cfg.state_bytes(13) == 4 * D + 12  # with the count and the cursor
    assert LAG[kind].state_bytes(10) == LAG[kind].state_bytes(10**6) == 2 * 3 * D + 12


@over_kinds
@pytest.mark.parametrize('window', [4, 24])
def test_changing_a_token_leaves_earlier_outputs_bit_for_bit(kind, window):
    cfg = dataclasses.replace(LAG[kind], window=window)
    y = run(cfg)(parameters(cfg), LONG)
    for t in (1, 17, 40):
        changed = run(cfg)(parameters(cfg), np.where(np.arange(60)[None, :, None] == t, 1 - LONG, LONG))
        np.testing.assert_array_equal(changed[:, :t], y[:, :t])
        assert np.all(np.any(changed[:, t : t + window] != y[:, t : t + window], axis=-1))
        np.testing.assert_array_equal(changed[:, t + window :], y[:, t + window :])


@pytest.mark.parametrize('table', [LAG, ABSOLUTE], ids=['lag', 'absolute'])
def test_each_kind_is_a_case_of_the_one_above_it(table):
    p = parameters(table['he'])
    w, f = p['v_proj']['kernel'], p['filter']
    gate = {'gate_proj': p['gate_proj']}
    she = run(table['she'])(gate | {'filter': w[None] * f[:, None]}, X)
    np.testing.assert_allclose(she, run(table['he'])(p, X), atol=2e-5)
    numbers = f[:, 0]
    he = run(table['he'])(p | {'filter': jnp.broadcast_to(numbers[:, None], f.shape)}, X)
    np.testing.assert_allclose(he, run(table['we'])(p | {'filter': numbers}, X), atol=2e-5)
    we = run(table['we'])(p | {'filter': jnp.ones_like(numbers)}, X)
    np.testing.assert_allclose(we, run(table['me'])(gate | {'v_proj': p['v_proj']}, X), atol=2e-5)


def test_at_the_start_all_but_she_are_me():
    start = {kind: nn.unbox(jax.jit(LAG[kind].make().init)(jax.random.key(1), X))['params'] for kind in KINDS}
    for kind in ('he', 'we'):
        own = start['me'] | {'filter': start[kind]['filter']}
        np.testing.assert_allclose(run(LAG[kind])(own, X), run(LAG['me'])(start['me'], X), atol=1e-5)


def test_me_without_a_window_is_a_cumulative_sum_over_the_root_of_the_count():
    cfg = dataclasses.replace(LAG['me'], window=100)
    p = parameters(cfg)
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        y = run(cfg)(p, x)
        e = np.cumsum(x @ np.asarray(p['v_proj']['kernel'], np.float64), axis=1)
        e = e / np.sqrt(np.arange(1, 14))[None, :, None]
        np.testing.assert_allclose(y, (x @ np.asarray(p['gate_proj']['kernel'], np.float64)) * e, atol=1e-12)


@over_kinds
def test_what_stood_before_the_window_changes_nothing_by_lag_and_everything_by_position(kind):
    junk = 5 * np.asarray(jax.random.normal(jax.random.key(4), (2, 6, D)))
    longer = np.concatenate([junk, X[:, :7]], axis=1)
    y, after = run(LAG[kind])(parameters(LAG[kind]), X[:, :7]), run(LAG[kind])(parameters(LAG[kind]), longer)[:, 6:]
    np.testing.assert_allclose(after[:, 3:], y[:, 3:], atol=2e-5)  # three tokens later the window is the text's own
    assert np.all(np.max(np.abs(after[:, :3] - y[:, :3]), axis=-1) > 1e-3)
    cfg = ABSOLUTE[kind]
    y, after = run(cfg)(parameters(cfg), X[:, :7]), run(cfg)(parameters(cfg), longer)[:, 6:]
    assert np.all(np.max(np.abs(after - y), axis=-1) > 1e-3)


def test_a_window_of_one_token_is_bilinear():
    cfg = dataclasses.replace(LAG['she'], window=1)
    p = parameters(cfg)
    expected = (X @ p['gate_proj']['kernel']) * (X @ p['filter'][0])
    np.testing.assert_allclose(run(cfg)(p, X), expected, atol=2e-5)
    assert_calls_are(expected, cfg, {'params': p}, X, PACKED, size=5, atol=2e-5)


@pytest.mark.parametrize('kind', ['she', 'he', 'we'])
def test_weights_within_the_text_get_a_gradient_and_those_of_longer_lags_exactly_none(kind):
    cfg = dataclasses.replace(LAG[kind], window=30)
    p = parameters(cfg)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(cfg.make().apply({'params': p}, X)[0]))))(p)['filter']
    sizes = np.max(np.abs(grad).reshape(30, -1), axis=1)
    assert np.all(sizes[:13] > 0) and np.all(sizes[13:] == 0)


@over_kinds
def test_a_gate_of_zeros_gives_zeros(kind):
    p = parameters(LAG[kind])
    y = run(LAG[kind])(p | {'gate_proj': jax.tree.map(jnp.zeros_like, p['gate_proj'])}, X)
    np.testing.assert_array_equal(y, np.zeros_like(X))


def test_the_sums_start_as_large_as_one_term_however_many_there_are():
    """The root of the count, not the count: the terms are independent."""
    cfg = ExtractorConfig(kind='she', width=D, window=60)
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), LONG))['params']
    x = jax.random.normal(jax.random.key(5), (16, 60, D))
    # Edited to 1 the gate leaves e alone.
    variables = {'params': params, 'edits': {'gates': Edit(value=jnp.ones(D))}}
    e, _ = jax.jit(cfg.make().apply)(variables, x)
    deviation = np.std(np.asarray(e), axis=(0, 2))
    np.testing.assert_allclose(deviation[[0, 1, 10, 59]], 1.0, rtol=0.15)


def test_the_published_indexing_is_a_cumulative_sum_of_one_matrix_a_position():
    """As in the public Flax file: x_i W_i, summed, over sqrt(t), times x_t W_adj."""
    p = parameters(ABSOLUTE['she'])
    e = np.cumsum(np.einsum('btd,tdf->btf', X, p['filter']), axis=1) / np.sqrt(np.arange(1, 14))[None, :, None]
    y = run(ABSOLUTE['she'])(p, X)
    np.testing.assert_allclose(y, (X @ np.asarray(p['gate_proj']['kernel'])) * e, atol=2e-5)


@pytest.mark.parametrize('kind', ['she', 'we'])
def test_past_the_learned_positions_outputs_are_nan_and_what_is_known_to_be_is_an_error(kind):
    cfg = dataclasses.replace(ABSOLUTE[kind], window=6)
    params = {name: leaf[:6] if name == 'filter' else leaf for name, leaf in parameters(ABSOLUTE[kind]).items()}
    y = run(cfg)(params, X, Context(segments=jnp.array(PACKED)))
    past = np.zeros(PACKED.shape, bool)
    past[1, 11:] = True  # of the documents of 4, 6, 5 and 8 tokens the last alone is longer than 6
    np.testing.assert_array_equal(np.any(np.isnan(y), axis=-1), past)
    with pytest.raises(ValueError, match="tokens=13 exceeds window=6 with indexing='absolute'"):
        run(cfg)(params, X)
    with pytest.raises(ValueError, match="capacity=7 exceeds window=6 with indexing='absolute'"):
        cfg.init_state(2, 7)
    state, step = cfg.init_state(2, 6, jnp.float32), jax.jit(cfg.make().apply)
    for t in range(8):
        y, state = step({'params': params}, X[:, t : t + 1], Context(), state)
        assert np.all(np.isnan(y)) == (t >= 6)


@pytest.mark.parametrize('kind', ['he', 'we'])
def test_the_fourier_form_is_the_same_on_whole_documents_and_refuses_others(kind):
    cfg = dataclasses.replace(LAG[kind], implementation='fft')
    np.testing.assert_allclose(run(cfg)(parameters(cfg), X), run(LAG[kind])(parameters(cfg), X), atol=2e-5)
    with pytest.raises(ValueError, match="implementation='fft' takes whole documents"):
        run(cfg)(parameters(cfg), X, Context(segments=jnp.array(PACKED)))
    with pytest.raises(ValueError, match="implementation='fft' has no state"):
        cfg.init_state(2, 10)


def test_matrices_are_matrices_to_the_optimizer_and_weights_of_lags_are_not():
    names = {}
    for kind in KINDS:
        boxed = jax.eval_shape(LAG[kind].make().init, jax.random.key(0), X)['params']
        names[kind] = nn.get_partition_spec(boxed).get('filter')
    assert matrix_axes(tuple(names['she'])).output_axis == (2,)
    assert matrix_axes(tuple(names['he'])) is matrix_axes(tuple(names['we'])) is None


def test_operations_grow_linearly_and_only_shes_with_the_window_times_the_width_squared():
    flops = lambda kind, tokens, window=64: ExtractorConfig(kind=kind, width=128, window=window).flops(tokens)
    for kind in KINDS:
        assert flops(kind, 1024) == 4 * flops(kind, 256)
    assert SoftmaxConfig(width=128).flops(4096) > 5 * SoftmaxConfig(width=128).flops(1024)
    assert flops('she', 256) == 2 * 256 * 128 * 128 * 65
    assert flops('me', 256) == flops('me', 256, 4) == 2 * 256 * 128 * 128 * 2
    assert flops('me', 256) < flops('he', 256) == flops('we', 256) == 2 * 256 * 128 * (2 * 128 + 128)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(kind='us'), "kind='us' must be one of she, he, we, me"),
        (dict(indexing='none'), "indexing='none' must be one of lag, absolute"),
        (dict(implementation='pallas'), "implementation='pallas' must be one of None, fft"),
        (dict(window=0), 'window=0 must be at least 1'),
        (dict(kind='she', implementation='fft'), "implementation='fft' is for kinds he and we"),
        (dict(kind='he', indexing='absolute', implementation='fft'), "not for kind='he' with indexing='absolute'"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ExtractorConfig(width=D, **fields)
