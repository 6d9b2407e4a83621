"""The delta rules: chunks against the step form in float64, values and all gradients, on one hard input.

Row 0 has decays of every size, -inf and 0 among them, and strengths of 0 and 1; row 1 has one key throughout, written
with full strength. Documents begin and end inside chunks, with padding before, between, within and after them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.ops import diagonal_plus_low_rank, gated_delta_rule, gated_linear_attention
from jattn.ops.delta_rule import xla

B, T, H, K, V = 2, 37, 2, 8, 12
PACKED = np.array(
    [[0] * 3 + [4] * 6 + [0] + [4] * 8 + [0] * 2 + [7] * 5 + [9] * 9 + [0] * 3, [1] * 16 + [2] * 17 + [5] * 4], np.int32
)
# name: decay, and for the delta rules the options; None: diagonal plus low rank
RULES = {
    'deltanet': ('none', {}),
    'gated deltanet': ('head', {}),
    'kimi delta': ('channel', {}),
    'error key': ('channel', {'error_key'}),
    'raw error': ('head', {'raw_error'}),
    'comba': ('channel', {'raw_error', 'error_key'}),
    'rwkv7': ('channel', None),
    'low rank': ('head', None),
}
SOME = ['gated deltanet', 'raw error', 'rwkv7']
NAMES = ('y', 'state', 'dq', 'dk', 'dv', 'dlog_decay', 'dstrength or da', 'derror_key or db', 'dinitial_state')


def inputs(rule, tokens=T, dtype=np.float64):
    """[q, k, v, log_decay, write_strength or a, error_key or b, initial_state, dy, dstate]."""
    rng = np.random.default_rng(0)
    shapes = [(B, tokens, H, K)] * 4 + [(B, tokens, H, V), (B, H, K, V), (B, tokens, H, V), (B, H, K, V)]
    q, k, other, third, v, state, dy, dstate = (rng.normal(size=shape) for shape in shapes)
    k[1] = k[1, :1]
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, options = RULES[rule]
    log_decay = None
    if decay != 'none':
        log_decay = -(10 ** rng.uniform(-8, 0.5, (B, tokens, H, *[K] * (decay == 'channel'))))
        for place, value in ((4, 0), (11, -20), (13, -1e4), (14, -1e-7), (22, -np.inf)):
            log_decay[0, place : place + 1] = value
    strength = rng.uniform(size=(B, tokens, H))
    strength[0, 8:9], strength[0, 15:16], strength[1] = 0, 1, 1
    if options is None:
        other, third = 0.3 * other, 0.3 * third
        other[1], third[1] = -k[1], k[1] * rng.uniform(size=(tokens, H, K))  # as RWKV-7 has them
    else:
        other, third = strength, 0.5 * third if 'error_key' in options else None
    arrays = [q, k, v, log_decay, other, third, state, dy, dstate]
    return [None if array is None else array.astype(dtype) for array in arrays]


def attend(rule, form, chunk, q, k, v, log_decay, other, third, state, segments):
    """Outputs and last state of the public functions."""
    options = RULES[rule][1]
    shared = {'initial_state': state, 'return_state': True, 'scale': 0.3, 'segments': segments}
    shared |= {'chunk': chunk, 'implementation': form}
    if options is None:
        return diagonal_plus_low_rank(q, k, v, log_decay, other, third, **shared)
    return gated_delta_rule(q, k, v, log_decay, other, raw_error='raw_error' in options, error_key=third, **shared)


@functools.cache
def compiled(rule, form, chunk=16):
    """(the arrays of `inputs`, segments) to the arrays of NAMES."""

    @jax.jit
    def run(q, k, v, log_decay, other, third, state, dy, dstate, segments):
        primals = q, k, v, log_decay, other, third, state
        out, pull = jax.vjp(lambda *primals: attend(rule, form, chunk, *primals, segments), *primals)
        return *out, *pull((dy, dstate))

    return run


@functools.cache
def truth(rule, packed=True, dtype='float64'):
    """The step form in float64 on inputs rounded to `dtype`."""
    with jax.enable_x64(True):
        exact = [None if x is None else x.astype(np.float64) for x in inputs(rule, dtype=jnp.dtype(dtype))]
        return compiled(rule, 'reference')(*exact, PACKED if packed else np.ones_like(PACKED))


def assert_equal(ours, exact, tolerance):
    for name, p, q in zip(NAMES, ours, exact):
        if q is not None:
            p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
            assert np.linalg.norm(p - q) <= tolerance * np.linalg.norm(q), name


def token_loop(rule, q, k, v, log_decay, other, third, state):
    """The definitions, with matrices written out."""
    options, y = RULES[rule][1], np.zeros((B, T, H, V))
    if log_decay is None:
        log_decay = np.zeros((B, T, H))
    for b, h in np.ndindex(B, H):
        document, S = 0, state[b, h]
        for t in range(T):
            if not PACKED[b, t]:
                continue
            S = S * (document in (0, PACKED[b, t]))
            document = PACKED[b, t]
            faded = np.diag(np.exp(np.broadcast_to(log_decay[b, t, h], K))) @ S
            if options is None:
                S = faded + np.outer(third[b, t, h], S.T @ other[b, t, h]) + np.outer(k[b, t, h], v[b, t, h])
            else:
                key = third[b, t, h] if 'error_key' in options else k[b, t, h]
                error = v[b, t, h] - (S if 'raw_error' in options else faded).T @ key
                S = faded + other[b, t, h] * np.outer(k[b, t, h], error)
            y[b, t, h] = 0.3 * S.T @ q[b, t, h]
        state[b, h] = S
    return y, state


@pytest.mark.parametrize('rule', RULES)
def test_the_step_form_follows_the_definition(rule):
    assert_equal(truth(rule), token_loop(rule, *inputs(rule)[:7]), 1e-13)


@pytest.mark.parametrize(
    ('rule', 'packed', 'chunk'),
    [
        ('deltanet', False, 4),
        ('deltanet', True, 4),
        ('gated deltanet', True, 1),
        ('gated deltanet', True, 4),
        ('gated deltanet', True, 64),
        ('kimi delta', True, 16),
        ('error key', True, 4),
        ('comba', True, 16),
        ('rwkv7', True, 1),
        ('rwkv7', True, 16),
        ('low rank', True, 64),
    ],
)
def test_chunks_of_any_size_equal_the_step_form_in_float64(rule, packed, chunk):
    with jax.enable_x64(True):
        ours = compiled(rule, 'xla', chunk)(*inputs(rule), PACKED if packed else None)
    assert_equal(ours, truth(rule, packed), 1e-10)


@pytest.mark.parametrize(
    ('rule', 'dtype', 'tolerance'),
    [(rule, 'float32', 1e-5) for rule in SOME] + [(rule, 'bfloat16', 1e-2) for rule in ('comba', 'low rank')],
)
def test_chunks_equal_the_step_form_in_lower_precision(rule, dtype, tolerance):
    arrays = inputs(rule, dtype=jnp.dtype(dtype))
    for place in (3, 6, 8):  # decays and states are never below float32
        arrays[place] = arrays[place].astype(np.float32)
    ours = compiled(rule, 'xla')(*arrays, PACKED)
    assert ours[0].dtype == ours[4].dtype == ours[6].dtype == dtype
    assert ours[1].dtype == ours[5].dtype == np.float32
    assert_equal(ours, truth(rule, dtype=dtype), tolerance)


@pytest.mark.parametrize('rule', ['comba', 'rwkv7'])
def test_a_single_token_equals_the_step_form(rule):
    with jax.enable_x64(True):
        ours, exact = (compiled(rule, form, 64)(*inputs(rule, 1), PACKED[:, 5:6]) for form in ('xla', 'reference'))
    assert_equal(ours, exact, 1e-12)


def test_a_single_token_is_a_chunk_of_one():
    assert [xla.chunk_size(64, tokens, False) for tokens in (1, 2, 37, 64, 1000)] == [1, 2, 64, 64, 64]
    assert [xla.chunk_size(chunk, 37, True) for chunk in (1, 8, 64)] == [1, 8, 16]


@pytest.mark.parametrize('rule', SOME)
def test_the_future_has_gradients_of_exactly_zero(rule):
    arrays = inputs(rule, dtype=np.float32)
    arrays[7][:, 20:] = 0
    _, _, *gradients, dstate = compiled(rule, 'xla')(*arrays[:8], np.zeros_like(arrays[8]), PACKED)
    for gradient in gradients:
        if gradient is not None:
            np.testing.assert_array_equal(gradient[:, 20:], 0)
            assert np.any(np.asarray(gradient)[:, :20] != 0)
    assert np.any(np.asarray(dstate) != 0)


@pytest.mark.parametrize('rule', SOME)
def test_a_document_knows_nothing_of_another_and_padding_is_never_read(rule):
    arrays, inside = inputs(rule, dtype=np.float32), PACKED == 7
    for array in arrays[:6]:
        if array is not None:
            array[PACKED == 0] = np.nan
    arrays[7][~inside] = 0
    y, state, *gradients, dstate = compiled(rule, 'xla')(*arrays[:8], np.zeros_like(arrays[8]), PACKED)
    assert np.all(np.isfinite(state)) and np.all(np.asarray(y)[PACKED == 0] == 0)
    for gradient in gradients:
        if gradient is not None:
            np.testing.assert_array_equal(np.asarray(gradient)[~inside], 0)
    assert np.all(np.any(np.asarray(gradients[0])[inside] != 0, axis=-1))
    np.testing.assert_array_equal(dstate, 0)


@pytest.mark.parametrize('rule', SOME)
def test_padding_alone_returns_the_initial_state_and_zeros(rule):
    arrays = inputs(rule, dtype=np.float32)
    y, state, *gradients, dinitial = compiled(rule, 'xla')(*arrays, np.zeros_like(PACKED))
    np.testing.assert_array_equal(state, arrays[6])
    np.testing.assert_array_equal(dinitial, arrays[8])
    for zeros in (y, *gradients):
        if zeros is not None:
            np.testing.assert_array_equal(zeros, 0)


def test_two_calls_with_the_state_handed_over_equal_one():
    """In row 0 a document ends at the cut, and the caller hands over no state; in row 1 one goes on."""
    *arrays, state, _, _ = inputs('comba')
    outputs = []
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(attend, 'comba', 'xla', 4))
        for tokens, goes_on in ((slice(20), [[1], [1]]), (slice(20, None), [[0], [1]])):
            y, state = run(
                *(x[:, tokens] for x in arrays), state * np.reshape(goes_on, (B, 1, 1, 1)), PACKED[:, tokens]
            )
            outputs.append(y)
    assert_equal((np.concatenate(outputs, 1), state), truth('comba'), 1e-12)


@pytest.mark.parametrize('rule', SOME)
def test_strong_decays_stay_finite_and_exact(rule):
    arrays = inputs(rule, dtype=np.float32)
    arrays[3] = np.full_like(arrays[3], -20)
    ours = compiled(rule, 'xla')(*arrays, np.ones_like(PACKED))
    assert all(np.all(np.isfinite(array)) for array in ours if array is not None)
    with jax.enable_x64(True):
        exact = compiled(rule, 'reference')(
            *(x if x is None else x.astype(np.float64) for x in arrays), np.ones_like(PACKED)
        )
    assert_equal(ours, exact, 1e-5)


def test_weak_decays_keep_their_digits_beside_strong_ones():
    """A difference of cumulative sums near -1000 would leave float32 four digits of a decay of 0.99."""
    arrays = inputs('gated deltanet', dtype=np.float32)
    arrays[3] = np.where(np.arange(T) % 3 == 0, -300, np.log(0.99)).astype(np.float32)[None, :, None].repeat(B, 0)
    arrays[3] = arrays[3].repeat(H, 2)
    with jax.enable_x64(True):
        exact = compiled('gated deltanet', 'reference')(
            *(x if x is None else x.astype(np.float64) for x in arrays), np.ones_like(PACKED)
        )
    assert_equal(compiled('gated deltanet', 'xla')(*arrays, np.ones_like(PACKED))[:5], exact[:5], 1e-6)


@pytest.mark.parametrize('rule', ['kimi delta', 'comba'])
def test_the_delta_rules_are_rows_of_diagonal_plus_low_rank(rule):
    q, k, v, log_decay, strength, error_key, *rest = inputs(rule)
    a = -strength[..., None] * (np.exp(log_decay) * k if rule == 'kimi delta' else error_key)
    with jax.enable_x64(True):
        ours = compiled('rwkv7', 'xla')(q, strength[..., None] * k, v, log_decay, a, k, *rest, PACKED)
    assert_equal(ours[:3], truth(rule)[:3], 1e-10)


def test_without_its_low_rank_part_it_is_gated_linear_attention():
    q, k, v, log_decay, _, _, state, *cotangents = inputs('rwkv7')
    shared = {'return_state': True, 'scale': 0.3, 'segments': PACKED, 'implementation': 'reference'}
    with jax.enable_x64(True):
        ours = compiled('rwkv7', 'xla')(q, k, v, log_decay, 0 * k, 0 * k, state, *cotangents, PACKED)
        exact = gated_linear_attention(q, k, v, log_decay, initial_state=state, **shared)
    assert_equal(ours, exact, 1e-10)


def test_a_decay_per_channel_with_equal_entries_is_one_per_head():
    arrays = inputs('gated deltanet')
    per_channel = arrays[:3] + [np.repeat(arrays[3][..., None], K, -1)] + arrays[4:]
    with jax.enable_x64(True):
        ours = list(compiled('kimi delta', 'xla')(*per_channel, PACKED))
    ours[5] = np.sum(np.asarray(ours[5]), axis=-1)
    assert_equal(ours, truth('gated deltanet'), 1e-10)


def test_orthonormal_keys_written_with_full_strength_are_recalled_exactly():
    rng = np.random.default_rng(0)
    k = np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)[None, :, None]
    v = rng.normal(size=(1, 16, 1, 5)).astype(np.float32)
    k, v, ones = np.concatenate([k, k], 1), np.concatenate([v, 0 * v], 1), np.ones((1, 32, 1), np.float32)
    ones[:, 16:] = 0  # the second half only asks
    y = gated_delta_rule(k, k, v, None, ones, scale=1.0)
    np.testing.assert_allclose(y[:, 16:], v[:, :16], atol=2e-6)


def test_the_same_key_written_4096_times_holds_the_last_value():
    rng = np.random.default_rng(0)
    k = np.repeat(rng.normal(size=(1, 1, 1, 8)), 4096, 1).astype(np.float32)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(1, 4096, 1, 4)).astype(np.float32)

    @jax.jit
    def run(k, v):
        ones = jnp.ones((1, 4096, 1))
        y, pull = jax.vjp(lambda k, v: gated_delta_rule(k, k, v, None, ones, scale=1.0), k, v)
        return y, *pull(jnp.ones_like(y))

    y, dk, dv = run(k, v)
    np.testing.assert_allclose(y, v, atol=1e-5)
    np.testing.assert_allclose(dv, 1, atol=1e-4)
    assert np.all(np.isfinite(dk))


def test_rows_and_heads_stay_on_their_devices():
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    tokens, state = P('data', None, 'tensor'), P('data', 'tensor')
    specs = [tokens] * 5 + [None, state, tokens, state, P('data')]
    arrays = [*inputs('gated deltanet', dtype=np.float32), PACKED]
    with jax.set_mesh(mesh):
        laid_out = [x if x is None else jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs)]
        call = jax.jit(compiled('gated deltanet', 'xla', 4).__wrapped__).lower(*laid_out).compile()
        ours = call(*laid_out)
    assert not any(word in call.as_text() for word in ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce'))
    assert_equal(ours, truth('gated deltanet', dtype='float32'), 1e-5)


def test_the_public_functions_fill_in_what_is_not_given():
    q, k, v, log_decay, strength = (x[:, :4] for x in inputs('gated deltanet', dtype=np.float32)[:5])
    zeros = np.zeros((B, H, K, V), np.float32)
    explicit = {'initial_state': zeros, 'return_state': True, 'scale': K**-0.5, 'implementation': 'reference'}
    explicit |= {'segments': np.ones((B, 4), np.int32)}
    for function, others in ((gated_delta_rule, (strength,)), (diagonal_plus_low_rank, (-k, 0.5 * k))):
        y = jax.jit(function)(q, k, v, log_decay, *others)
        expected, state = function(q, k, v, log_decay, *others, **explicit)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert state.shape == (B, H, K, V)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'k': np.zeros((B, T, H, K + 1), np.float32)}, r'k has shape \(2, 37, 2, 9\)'),
        ({'log_decay': np.zeros((B, T), np.float32)}, "'B T H' were expected"),
        ({'log_decay': np.zeros((B, T, H, 1), np.float32)}, 'with K=8'),
        ({'write_strength': np.zeros((B, T, H, 1), np.float32)}, 'write_strength has shape'),
        ({'write_strength': np.ones((B, T, H), np.int32)}, 'write_strength is int32'),
        ({'error_key': np.zeros((B, T, H, V), np.float32)}, 'error_key has shape'),
        ({'initial_state': np.zeros((B, H, V, K), np.float32)}, 'initial_state has shape'),
        ({'segments': PACKED[:, 1:]}, 'segments has shape'),
        ({'segments': PACKED.astype(np.float32)}, 'segments is float32'),
        ({'chunk': 0}, 'chunk=0, but a power of two'),
        ({'chunk': 48}, 'chunk=48, but a power of two'),
        ({'implementation': 'pallas_tpu'}, "implementation='pallas_tpu'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    q, k, v, _, strength, *_ = inputs('deltanet', dtype=np.float32)
    arguments = {'q': q, 'k': k, 'v': v, 'log_decay': None, 'write_strength': strength} | change
    with pytest.raises(ValueError, match=f'gated_delta_rule: .*{message}'):
        gated_delta_rule(**arguments)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'a': np.zeros((B, T, H, V), np.float32)}, 'a has shape'),
        ({'b': np.zeros((B, T, H, K), np.int32)}, 'b is int32'),
        ({'q': np.zeros((B, T, H, K), np.int32)}, 'q is int32'),
        ({name: np.zeros((B, 0, H, K), np.float32) for name in 'qkvab'}, 'at least one token'),
        ({'chunk': 3}, 'chunk=3'),
    ],
)
def test_bad_arguments_of_diagonal_plus_low_rank_are_named(change, message):
    q, k, v, *_ = inputs('deltanet', dtype=np.float32)
    with pytest.raises(ValueError, match=f'diagonal_plus_low_rank: .*{message}'):
        diagonal_plus_low_rank(**({'q': q, 'k': k, 'v': v, 'log_decay': None, 'a': k, 'b': k} | change))
