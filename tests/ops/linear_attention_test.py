"""Gated linear attention: every form against the step form in float64, values and all gradients, on one hard input.

Row 0 has decays of every size, -inf and 0 among them; row 1 has one key throughout. Documents begin and end inside
chunks, with padding before, between, within and after them. The kernels run interpreted, through their whole gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.ops import gated_linear_attention
from jattn.ops.linear_attention import api

B, T, H, K, V = 2, 37, 2, 8, 12
PACKED = np.array(
    [[0] * 3 + [4] * 6 + [0] + [4] * 8 + [0] * 2 + [7] * 5 + [9] * 9 + [0] * 3, [1] * 16 + [2] * 17 + [5] * 4], np.int32
)
NAMES = ('y', 'state', 'dq', 'dk', 'dv', 'dlog_decay', 'dinitial_state')
KERNELS = ['pallas_triton', 'pallas_tpu']
FORMS = ['xla', *KERNELS]
DECAYS = ['head', 'channel']


def inputs(decay, tokens=T, dtype=np.float64):
    """[q, k, v, log_decay, initial_state, dy, dstate]."""
    rng = np.random.default_rng(0)
    shapes = (B, tokens, H, K), (B, tokens, H, K), (B, tokens, H, V), (B, H, K, V), (B, tokens, H, V), (B, H, K, V)
    q, k, v, state, dy, dstate = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    k[1] = k[1, :1]
    log_decay = None
    if decay != 'none':
        log_decay = -(10 ** rng.uniform(-8, 0.5, (B, tokens, H, K if decay == 'channel' else 1))).astype(dtype)
        for place, value in ((4, 0), (11, -20), (13, -1e4), (14, -1e-7), (22, -np.inf)):
            log_decay[0, place : place + 1] = value
    return [q, k, v, log_decay, state, dy, dstate]


@functools.cache
def compiled(form, chunk=16, interpret=True):
    """(q, k, v, log_decay, state, dy, dstate, segments) to the arrays of NAMES."""

    @jax.jit
    def run(q, k, v, log_decay, state, dy, dstate, segments):
        def attend(q, k, v, log_decay, state):
            return api.run(
                form,
                q,
                k,
                v,
                log_decay,
                state,
                segments,
                scale=0.3,
                chunk=chunk,
                interpret=form in KERNELS and interpret,
            )

        (y, last), pull = jax.vjp(attend, q, k, v, log_decay, state)
        return y, last, *pull((dy, dstate))

    return run


@functools.cache
def truth(decay, packed=True, tokens=T, dtype='float64'):
    """The step form in float64 on inputs rounded to `dtype`."""
    with jax.enable_x64(True):
        arrays = inputs(decay, tokens, jnp.dtype(dtype))
        exact = [None if array is None else array.astype(np.float64) for array in arrays]
        return compiled('reference')(*exact, PACKED[:, :tokens] if packed else None)


def assert_equal(ours, exact, tolerance):
    for name, p, q in zip(NAMES, ours, exact):
        if q is not None:
            p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
            assert np.linalg.norm(p - q) <= tolerance * np.linalg.norm(q), name


@pytest.mark.parametrize('decay', ['none', *DECAYS])
def test_the_step_form_follows_the_definition(decay):
    q, k, v, log_decay, state, *_ = inputs(decay)
    a, y = np.ones((B, T, H, 1)) if log_decay is None else np.exp(log_decay), np.zeros((B, T, H, V))
    for b in range(B):
        document = 0
        for t in range(T):
            if PACKED[b, t]:
                state[b] *= document in (0, PACKED[b, t])
                document = PACKED[b, t]
                state[b] = a[b, t, :, :, None] * state[b] + k[b, t, :, :, None] * v[b, t, :, None]
                y[b, t] = 0.3 * np.einsum('hkv,hk->hv', state[b], q[b, t])
    assert_equal(truth(decay), (y, state), 1e-14)


@pytest.mark.parametrize(
    ('decay', 'packed', 'chunk'),
    [
        ('none', False, 16),
        ('none', True, 16),
        ('head', False, 16),
        ('head', True, 1),
        ('head', True, 16),
        ('head', True, 64),
        ('channel', True, 1),
        ('channel', True, 5),
        ('channel', True, 16),
    ],
)
def test_chunks_of_any_size_equal_the_step_form_in_float64(decay, packed, chunk):
    with jax.enable_x64(True):
        ours = compiled('xla', chunk)(*inputs(decay), PACKED if packed else None)
    assert_equal(ours, truth(decay, packed), 1e-10)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('decay', DECAYS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 1e-2)])
def test_every_form_equals_the_step_form(form, decay, dtype, tolerance):
    arrays = inputs(decay, dtype=jnp.dtype(dtype))
    for place in (3, 4, 6):  # decays and states are never below float32
        arrays[place] = arrays[place].astype(np.float32)
    ours = compiled(form)(*arrays, PACKED)
    assert ours[0].dtype == ours[4].dtype == dtype and ours[1].dtype == ours[5].dtype == np.float32
    assert_equal(ours, truth(decay, dtype=dtype), tolerance)


@pytest.mark.parametrize('form', KERNELS)
@pytest.mark.parametrize(('tokens', 'chunk'), [(T, 16), (1, 64)])
def test_kernels_serve_no_decay_no_segments_and_a_single_token(form, tokens, chunk):
    ours = compiled(form, chunk)(*inputs('none', tokens, np.float32), None)
    assert_equal(ours, truth('none', False, tokens, 'float32'), 1e-5)


@pytest.mark.parametrize('form', KERNELS)
def test_value_channels_may_fill_several_blocks(form):
    """72 value channels are two blocks of 64 on a GPU, where the gradients of q, k and decays are sums over blocks."""
    q, k, _, log_decay, *_ = inputs('head', dtype=np.float32)
    rng = np.random.default_rng(1)
    v, state, dy, dstate = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, H, 72), (B, H, K, 72)) * 2)
    arrays = q, k, v, log_decay, state, dy, dstate
    assert_equal(compiled(form)(*arrays, PACKED), compiled('reference')(*arrays, PACKED), 1e-5)


@pytest.mark.parametrize('decay', DECAYS)
def test_a_single_token_equals_the_step_form(decay):
    with jax.enable_x64(True):
        ours = compiled('xla', 64)(*inputs(decay, 1), PACKED[:, 5:6])
        exact = compiled('reference')(*inputs(decay, 1), PACKED[:, 5:6])
    assert_equal(ours, exact, 1e-12)


def test_the_tpu_kernel_has_no_races_and_reads_nothing_unwritten():
    checked = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
    ours = compiled('pallas_tpu', 16, checked)(*inputs('head', dtype=np.float32), PACKED)
    assert_equal(ours, truth('head', dtype='float32'), 1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('decay', DECAYS)
def test_the_future_has_gradients_of_exactly_zero(form, decay):
    arrays = inputs(decay, dtype=np.float32)
    arrays[5][:, 20:] = 0
    _, _, *gradients, dstate = compiled(form)(*arrays[:6], np.zeros_like(arrays[6]), PACKED)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[:, 20:], 0)
    assert np.any(np.asarray(gradients[3])[:, :20] != 0) and np.any(np.asarray(dstate) != 0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('decay', DECAYS)
def test_a_document_knows_nothing_of_another_and_padding_is_never_read(form, decay):
    arrays, inside = inputs(decay, dtype=np.float32), PACKED == 7
    for array in arrays[:3]:
        array[PACKED == 0] = np.nan
    arrays[5][~inside] = 0
    y, state, *gradients, dstate = compiled(form)(*arrays[:6], np.zeros_like(arrays[6]), PACKED)
    assert np.all(np.isfinite(state)) and np.all(np.asarray(y)[PACKED == 0] == 0)
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[~inside], 0)
    assert np.all(np.any(np.asarray(gradients[0])[inside] != 0, axis=-1))
    np.testing.assert_array_equal(dstate, 0)


@pytest.mark.parametrize('form', FORMS)
def test_padding_alone_returns_the_initial_state_and_zeros(form):
    arrays = inputs('head', dtype=np.float32)
    y, state, dq, dk, dv, dlog_decay, dinitial = compiled(form)(*arrays, np.zeros_like(PACKED))
    np.testing.assert_array_equal(state, arrays[4])
    np.testing.assert_array_equal(dinitial, arrays[6])
    for zeros in (y, dq, dk, dv, dlog_decay):
        np.testing.assert_array_equal(zeros, 0)


@pytest.mark.parametrize(
    ('form', 'cut', 'goes_on'),
    [(form, 9, [1, 1]) for form in FORMS] + [('xla', 16, [1, 0]), ('xla', 20, [0, 1])],
)
def test_two_calls_with_the_state_handed_over_equal_one(form, cut, goes_on):
    """goes_on: the rows whose document is cut; in the others it ends there, and the caller hands over no state."""
    q, k, v, log_decay, state, *_ = inputs('channel', dtype=np.float32)

    def attend(part, state):
        arrays = [array[:, part] for array in (q, k, v, log_decay)]
        return api.run(form, *arrays, state, PACKED[:, part], scale=0.3, chunk=16, interpret=form in KERNELS)

    whole, final = attend(slice(None), state)
    first, state = attend(slice(cut), state)
    second, state = attend(slice(cut, None), state * np.reshape(goes_on, (B, 1, 1, 1)).astype(np.float32))
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('decay', DECAYS)
def test_strong_decays_over_a_long_sequence_stay_finite_and_exact(form, decay):
    q, k, v, _, state, dy, dstate = inputs('none', 2048, np.float32)
    log_decay = np.full((1, 2048, 1, K if decay == 'channel' else 1), -20, np.float32)
    arrays = [q[:1, :, :1], k[:1, :, :1], v[:1, :, :1], log_decay, state[:1, :1], dy[:1, :, :1], dstate[:1, :1]]
    ours = compiled(form)(*arrays, None)
    assert all(np.all(np.isfinite(array)) for array in ours)
    assert_equal(ours, compiled('reference')(*arrays, None), 1e-5)


def test_weak_decays_keep_their_digits_beside_strong_ones():
    """A difference of cumulative sums near -1000 would leave float32 four digits of a decay of 0.99."""
    arrays = inputs('head', dtype=np.float32)
    arrays[3] = np.where(np.arange(T) % 3 == 0, -300, np.log(0.99)).astype(np.float32)[None, :, None, None].repeat(B, 0)
    arrays[3] = np.repeat(arrays[3], H, 2)
    with jax.enable_x64(True):
        exact = compiled('reference')(*(array.astype(np.float64) for array in arrays), None)
    assert_equal(compiled('xla', 64)(*arrays, None)[:5], exact[:5], 1e-6)


@pytest.mark.parametrize('form', KERNELS)
def test_kernels_stay_on_their_devices(form):
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    arrays = inputs('head', dtype=np.float32)
    specs = [P('data', None, 'tensor')] * 4 + [P('data', 'tensor'), P('data', None, 'tensor'), P('data', 'tensor')]
    run = jax.jit(compiled(form).__wrapped__)
    with jax.set_mesh(mesh):
        laid_out = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs)]
        call = run.lower(*laid_out, jax.device_put(PACKED, NamedSharding(mesh, P('data')))).compile()
        ours = call(*laid_out, jax.device_put(PACKED, NamedSharding(mesh, P('data'))))
    assert not any(word in call.as_text() for word in ('all-gather', 'all-to-all', 'collective-permute'))
    assert_equal(ours, truth('head', dtype='float32'), 1e-5)


def test_rows_and_heads_that_a_mesh_does_not_divide_are_repeated():
    q, k, v, log_decay, *_ = (array for array in inputs('head', dtype=np.float32) if array is not None)
    with jax.set_mesh(jax.make_mesh((4,), ('tensor',), axis_types=(AxisType.Auto,))):
        y, _ = api.run(
            'pallas_tpu',
            q,
            k,
            v,
            log_decay,
            np.zeros((B, H, K, V), np.float32),
            None,
            scale=1.0,
            chunk=16,
            interpret=True,
        )
    np.testing.assert_allclose(y, gated_linear_attention(q, k, v, log_decay[..., 0], scale=1.0), rtol=1e-4, atol=1e-5)


def test_the_public_function_fills_in_what_is_not_given():
    q, k, v, log_decay, *_ = inputs('head', dtype=np.float32)
    y = gated_linear_attention(q, k, v, log_decay[..., 0])
    zeros = np.zeros((B, H, K, V), np.float32)
    explicit, state = gated_linear_attention(
        q, k, v, log_decay[..., 0], initial_state=zeros, return_state=True, scale=K**-0.5,
        segments=np.ones((B, T), np.int32), implementation='xla',
    )  # fmt: skip
    np.testing.assert_allclose(y, explicit, rtol=1e-6, atol=1e-6)
    assert state.shape == (B, H, K, V)
    jitted = jax.jit(gated_linear_attention)(q, k, v, log_decay[..., 0])
    np.testing.assert_allclose(jitted, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'k': np.zeros((B, T, H, K + 1), np.float32)}, r'k has shape \(2, 37, 2, 9\)'),
        ({'log_decay': np.zeros((B, T), np.float32)}, "'B T H' were expected"),
        ({'log_decay': np.zeros((B, T, H, 1), np.float32)}, 'with K=8'),
        ({'initial_state': np.zeros((B, H, V, K), np.float32)}, 'initial_state has shape'),
        ({'segments': PACKED[:, 1:]}, 'segments has shape'),
        ({'segments': PACKED.astype(np.float32)}, 'segments is float32'),
        ({'q': np.zeros((B, T, H, K), np.int32)}, 'q is int32'),
        ({'q': np.zeros((B, 0, H, K)), 'k': np.zeros((B, 0, H, K)), 'v': np.zeros((B, 0, H, V))}, 'at least one token'),
        ({'chunk': 0}, 'chunk=0'),
        ({'implementation': 'pallas'}, "implementation='pallas'"),
        ({'implementation': 'pallas_tpu', 'v': np.zeros((B, T, H, V), jnp.bfloat16)}, 'float32, float32, bfloat16'),
        ({'implementation': 'pallas_triton', 'q': np.zeros((B, T, H, K), np.float16)}, 'q, k, v of float16'),
    ],
)
def test_bad_arguments_are_named(change, message):
    q, k, v, *_ = inputs('none', dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**({'q': q, 'k': k, 'v': v, 'log_decay': None} | change))


@pytest.mark.parametrize(('name', 'keys', 'values'), [('pallas_triton', 129, 8), ('pallas_tpu', 512, 513)])
def test_heads_too_large_for_a_kernel_are_named(name, keys, values):
    q, v = np.zeros((1, 16, 1, keys), np.float32), np.zeros((1, 16, 1, values), np.float32)
    with pytest.raises(ValueError, match=f'K={keys}'):
        gated_linear_attention(q, q, v, None, implementation=name)
