"""S4D against its recurrence and its kernel, with true time gaps, and where its digits are at risk."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.s4d import S4DConfig, expm1, fft_convolution, kernel, modal_scan
from jattn.training.optimizer import matrix_axes
from tests.mixers.packed import PACKED, X, assert_calls_are, assert_every_document_is, parameters

D, N = 32, 3
CFG = S4DConfig(width=D, state_size=2 * N, chunk=4)
GAPS = dataclasses.replace(CFG, use_gaps=True)
KEPT = np.array([0, 1, 4, 5, 6, 10, 12])  # of the 13 tokens of X


@functools.cache
def run(cfg):
    """The compiled call `(x, context, state) -> y, state`, at moved parameters."""
    params = parameters(cfg)
    return jax.jit(lambda x, context=Context(), state=None: cfg.make().apply({'params': params}, x, context, state))


def modes(p):
    """A, dt and C of every channel, in complex128."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in p.items() if name != 'o_proj'}
    a = -np.exp(p['decay_log']) + 1j * p['frequency']
    return a, np.exp(p['step_log'])[:, None], p['read_real'] + 1j * p['read_imag']


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def recurrence(p, x, cfg):
    """The outputs of one document [T, D], token by token, in float64."""
    x, (a, dt, c) = np.asarray(x, np.float64), modes(p)
    h, s = np.zeros(a.shape, complex), np.zeros_like(x)
    for t in range(len(x)):
        h = np.exp(dt * a) * h + (np.exp(dt * a) - 1) / a * x[t][:, None]
        s[t] = 2 * np.real(np.sum(c * h, axis=1)) + np.asarray(p['skip'], np.float64) * x[t]
    y = np.einsum('td,d...->t...', gelu(s), np.asarray(p['o_proj']['kernel'], np.float64))
    return y[:, 0] / (1 + np.exp(-y[:, 1])) if cfg.glu else y


@pytest.mark.parametrize('fields', [{}, dict(glu=True), dict(use_gaps=True)], ids=['linear', 'glu', 'gaps'])
def test_it_is_the_recurrence_of_the_paper_in_every_document(fields):
    """Also with gaps, which without dropped tokens are all 1."""
    assert_every_document_is(dataclasses.replace(CFG, **fields), recurrence)


@pytest.mark.parametrize('size', [1, 5])
def test_any_split_of_packed_rows_gives_the_same_outputs(size):
    whole, _ = run(CFG)(X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(whole, CFG, {'params': parameters(CFG)}, X, PACKED, size, atol=5e-5)


def test_the_convolution_is_the_recurrence():
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, 200, D)))
    fft, scan = dataclasses.replace(CFG, implementation='fft'), dataclasses.replace(CFG, chunk=64)
    params = {'params': parameters(CFG)}
    both = [jax.jit(cfg.make().apply) for cfg in (fft, scan)]
    y, exact = (apply(params, x)[0] for apply in both)
    np.testing.assert_allclose(y, exact, atol=1e-4)
    with jax.enable_x64(True):
        y, exact = (apply(params, x.astype(np.float64))[0] for apply in both)
        np.testing.assert_allclose(y, exact, atol=1e-10)


def test_the_kernel_of_one_state_is_its_closed_form():
    with jax.enable_x64(True):
        a, dt, c = -0.5 + 2.0j, 0.05, 0.3 - 0.7j
        rates, write, read = (jnp.array([[value]]) for value in (dt * a, (np.exp(dt * a) - 1) / a, c))
        closed = 2 * np.real(c * (np.exp(dt * a) - 1) / a * np.exp(dt * a) ** np.arange(40))
        np.testing.assert_allclose(kernel(rates, write, read, 40)[:, 0], closed, atol=1e-14)
        impulse = jnp.zeros((1, 40, 1)).at[0, 0].set(1.0)
        y, _ = modal_scan(impulse, rates, write, read, jnp.zeros((1, 1, 1), complex), chunk=16)
        np.testing.assert_allclose(y[0, :, 0], closed, atol=1e-14)
        np.testing.assert_allclose(fft_convolution(impulse, kernel(rates, write, read, 40)), y, atol=1e-14)


def test_a_held_input_reaches_what_the_differential_equation_says_whatever_the_step():
    """Zero-order hold is exact: h(1) = (exp(A) - 1) / A after 1 / dt steps of any dt."""
    with jax.enable_x64(True):
        a = np.array([[-0.5, -0.5 + 3j, -1e-3]])
        for count in (1, 10, 1000):
            rates = jnp.array(a / count)
            arguments = rates, expm1(rates) / a, jnp.ones_like(rates), jnp.zeros((1, 1, 3), complex)
            _, hidden = modal_scan(jnp.ones((1, count, 1)), *arguments)
            np.testing.assert_allclose(hidden[0], np.expm1(a) / a, rtol=1e-11)


def dropped(x):
    """The tokens that are not kept, as zeros."""
    return np.where(np.isin(np.arange(13), KEPT)[None, :, None], x, 0)


def test_gaps_equal_zeros_in_place_of_the_dropped_tokens():
    expected, _ = run(CFG)(dropped(X))
    positions = jnp.broadcast_to(jnp.array(KEPT), (2, len(KEPT)))
    y, _ = run(GAPS)(X[:, KEPT], Context(positions=positions))
    np.testing.assert_allclose(y, expected[:, KEPT], atol=5e-5)
    without, _ = run(CFG)(X[:, KEPT], Context(positions=positions))
    assert np.all(np.max(np.abs(without - expected[:, KEPT])[:, 2:], axis=-1) > 1e-2)  # a step a token is another text


def test_tokens_dropped_in_place_fade_the_state_by_their_positions():
    """As padding with positions; without gaps, or without positions, padding is no time."""
    segments = jnp.array(np.broadcast_to(np.isin(np.arange(13), KEPT), (2, 13)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(13), (2, 13))
    y, _ = run(GAPS)(X, Context(positions=positions, segments=segments))
    np.testing.assert_allclose(y[:, KEPT], run(CFG)(dropped(X))[0][:, KEPT], atol=5e-5)
    gathered, _ = run(CFG)(X[:, KEPT])
    for cfg, context in ((CFG, Context(positions=positions, segments=segments)), (GAPS, Context(segments=segments))):
        np.testing.assert_allclose(run(cfg)(X, context)[0][:, KEPT], gathered, atol=5e-5)


@pytest.mark.parametrize('cuts', [[*range(1, 7)], [3, 5]], ids=['steps', 'calls'])
def test_gaps_between_calls_count_in_each_document(cuts):
    """Two documents a row, the second a new one: its first position is no gap."""
    positions = jnp.array([[0, 3, 4, 9, 10, 15, 16], [5, 7, 2, 30, 31, 40, 41]])
    segments = jnp.array([[1] * 7, [1, 1, 2, 2, 2, 2, 2]])
    whole, _ = run(GAPS)(X[:, :7], Context(positions=positions, segments=segments))
    alone, _ = run(GAPS)(X[:, 2:7], Context(positions=jnp.broadcast_to(positions[1:, 2:], (2, 5))))
    np.testing.assert_allclose(whole[1, 2:], alone[1], atol=5e-5)
    state, outputs = GAPS.init_state(2, 7), []
    for start, end in itertools.pairwise([0, *cuts, 7]):
        part = slice(start, end)
        context = Context(positions=positions[:, part], segments=segments[:, part])
        y, state = run(GAPS)(X[:, part], context, state)
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=5e-5)


def test_a_huge_gap_forgets_with_finite_gradients():
    params = parameters(GAPS)
    positions = jnp.array([[0, 1, 2, 10**7]] * 2)

    def last(params, x):
        return GAPS.make().apply({'params': params}, x, Context(positions=positions))[0][:, 3]

    np.testing.assert_allclose(last(params, X[:, :4]), run(GAPS)(X[:, 3:4])[0][:, 0], atol=1e-5)
    grads = jax.jit(jax.grad(lambda params, x: jnp.sum(last(params, x)), argnums=(0, 1)))(params, X[:, :4])
    assert all(np.all(np.isfinite(grad)) for grad in jax.tree.leaves(grads))


def test_the_held_input_keeps_its_digits_at_small_steps():
    """exp(z) - 1 in float32 loses them: 4 of 7 where A and dt start, all of them further down."""

    def error(function, z):
        exact = np.expm1(z.astype(np.complex128))
        return np.max(np.abs(function(z) - exact) / np.abs(exact))

    parts = 10.0 ** np.arange(-7, 1)
    grid = (-parts[None] + 1j * np.concatenate([[0], parts])[:, None]).astype(np.complex64)
    first = (-0.5 * np.linspace(1e-3, 2e-3, 1000)).astype(np.complex64)
    assert error(expm1, grid) < 3e-7 and error(expm1, first) < 3e-7
    assert error(lambda z: jnp.exp(z) - 1, grid) > 0.1 and error(lambda z: jnp.exp(z) - 1, first) > 5e-5


def test_the_initial_values_are_the_papers():
    cfg = S4DConfig(width=2000, state_size=6)
    p = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), jnp.ones((1, 1, 2000))))['params']
    a, dt, c = modes(p)
    np.testing.assert_allclose(a, np.broadcast_to(-0.5 + 1j * np.pi * np.arange(3), (2000, 3)), rtol=1e-6)
    assert dt.min() > 0.999e-3 and dt.max() < 0.1001
    # mean and standard deviation of a uniform variable between log .001 and log .1, with 5 standard errors
    np.testing.assert_allclose(np.log(dt).mean(), np.log(0.01), atol=5 * np.log(100) / 12**0.5 / 2000**0.5)
    np.testing.assert_allclose(np.log(dt).std(), np.log(100) / 12**0.5, rtol=0.05)
    np.testing.assert_allclose(np.mean(np.abs(c) ** 2), 1.0, rtol=0.07)
    np.testing.assert_allclose(np.std(p['skip']), 1.0, rtol=0.08)


def test_only_the_output_projection_decays():
    boxed = jax.eval_shape(CFG.make().init, jax.random.key(0), X)['params']
    names = nn.get_partition_spec(boxed)
    assert matrix_axes(tuple(names.pop('o_proj')['kernel'])) is not None
    assert sorted(names) == ['decay_log', 'frequency', 'read_imag', 'read_real', 'skip', 'step_log']
    assert all(matrix_axes(tuple(name)) is None for name in names.values())


def test_no_parameter_makes_the_state_grow():
    """The real part of A is negative whatever its parameter is."""
    params = parameters(CFG) | {'decay_log': jnp.full((D, N), -50.0)}
    x = jax.random.normal(jax.random.key(6), (1, 3000, D))
    _, state = jax.jit(CFG.make().apply)({'params': params}, x, Context(), CFG.init_state(1, 3000))
    # Without decay the state is a sum of 3000 inputs times at most dt: a few standard deviations of it.
    dt = np.exp(params['step_log'])
    assert np.all(np.max(np.abs(state.hidden[0]), axis=1) < 6 * dt * 3000**0.5)


def temporaries(tokens, chunk):
    cfg = S4DConfig(width=32, state_size=16, chunk=chunk)
    mixer, x = cfg.make(), jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda variables, x: jnp.sum(mixer.apply(variables, x)[0])))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_training_does_not_keep_the_states_of_all_tokens():
    tokens, states = 2048, 8 * 2048 * 32 * 8  # bytes of h of all tokens
    assert temporaries(tokens, tokens) > 3 * states
    assert temporaries(tokens, 64) < 1.5 * states


def test_the_fourier_form_refuses_what_it_cannot_serve():
    fft = dataclasses.replace(CFG, implementation='fft')
    with pytest.raises(ValueError, match="implementation='fft' takes whole documents"):
        fft.make().apply({'params': parameters(CFG)}, X, Context(segments=jnp.array(PACKED)))
    with pytest.raises(ValueError, match="implementation='fft' has no state"):
        fft.init_state(2, 10)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(state_size=7), 'state_size=7 must be even and at least 2'),
        (dict(chunk=0), 'chunk=0 must be at least 1'),
        (dict(implementation='cuda'), "implementation='cuda' must be one of None, xla, reference, fft"),
        (dict(use_gaps=True, implementation='fft'), "use_gaps=True makes the steps uneven, which implementation='fft'"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        S4DConfig(**fields)
