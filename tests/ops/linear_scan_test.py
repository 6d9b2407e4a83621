"""The diagonal recurrence: every form against a loop in float64, values and gradients, and the laws of segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.ops import linear_scan, segments
from jattn.ops.scan.xla import fast_scan, tree_scan

B, T, F = 2, 19, 3
PACKED = np.array([[0, 0, 4, 4, 4, 4, 0, 4, 4, 7, 7, 7, 0, 0, 9, 0, 0, 0, 0], [1] * 10 + [2] * 9], np.int32)


def naive(a, x, initial_state, ids=None):
    """h [B,T,F] and the last state, token by token in float64 NumPy, from the words of the definition."""
    a, x, initial_state = (np.asarray(array, np.float64) for array in (a, x, initial_state))
    ids = np.ones(x.shape[:2], int) if ids is None else np.asarray(ids)
    h, last = np.zeros(x.shape), initial_state.copy()
    for b in range(x.shape[0]):
        document = None
        for t in range(x.shape[1]):
            if ids[b, t] == 0:
                continue
            if document not in (None, ids[b, t]):
                last[b] = 0
            document = ids[b, t]
            last[b] = h[b, t] = a[b, t] * last[b] + x[b, t]
    return h, last


def naive_gradients(a, x, initial_state, g_h, g_state, ids=None):
    """Gradients of sum(h g_h) + sum(state g_state) by a, x and initial_state, by walking back token by token."""
    ids = np.ones(x.shape[:2], int) if ids is None else np.asarray(ids)
    h, _ = naive(a, x, initial_state, ids)
    da, dx, carried = np.zeros(x.shape), np.zeros(x.shape), np.array(g_state, np.float64)
    for b in range(x.shape[0]):
        real = np.flatnonzero(ids[b])
        for n in range(len(real) - 1, -1, -1):
            t = real[n]
            dx[b, t] = carried[b] + g_h[b, t]
            same = n == 0 or ids[b, real[n - 1]] == ids[b, t]
            before = initial_state[b] if n == 0 else h[b, real[n - 1]]
            da[b, t] = dx[b, t] * before * same
            carried[b] = dx[b, t] * a[b, t] * same
    return da, dx, carried


def inputs(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    a = rng.uniform(size=(B, T, F))
    a[:, 4], a[:, 5], a[:, 11, 0] = 0, 1, 0
    shapes = (B, T, F), (B, F), (B, T, F), (B, F)
    return [a.astype(dtype)] + [rng.normal(size=shape).astype(dtype) for shape in shapes]


def outputs_and_gradients(a, x, initial_state, g_h, g_state, **options):
    def run(a, x, initial_state):
        return linear_scan(a, x, initial_state=initial_state, return_state=True, **options)

    out, pull = jax.vjp(run, a, x, initial_state)
    return out, pull((g_h, g_state))


@pytest.mark.parametrize('implementation', ['reference', 'xla'])
@pytest.mark.parametrize('ids', [None, PACKED], ids=['one_document', 'packed'])
def test_both_forms_equal_the_recurrence(implementation, ids):
    arrays = inputs()
    run = jax.jit(lambda *arrays: outputs_and_gradients(*arrays, segments=ids, implementation=implementation))
    out, gradients = run(*arrays)
    for ours, truth in zip(out, naive(*arrays[:3], ids)):
        np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-6)
    for ours, truth in zip(gradients, naive_gradients(*arrays, ids)):
        np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('reverse', [False, True])
def test_the_tree_of_accelerators_equals_the_steps(reverse):
    a, x, initial_state, *_ = inputs()
    along = slice(None, None, -1 if reverse else 1)
    truth = naive(a[:, along], x[:, along], initial_state)[0][:, along]
    ours = jax.jit(tree_scan, static_argnums=3)(a, x, initial_state, reverse)
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-6)


def test_accelerators_get_the_tree_and_cpus_the_loop():
    traced = jax.jit(lambda *arrays: jax.vjp(fast_scan, *arrays)[1](arrays[1])).trace(*inputs()[:3])
    assert 'while' in traced.lower(lowering_platforms=('cpu',)).as_text()
    for platform in ('cuda', 'tpu'):
        assert 'while' not in traced.lower(lowering_platforms=(platform,)).as_text()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = inputs(dtype=np.float64)
        (h, state), gradients = outputs_and_gradients(*arrays, segments=PACKED)
        assert h.dtype == state.dtype == np.float64
        np.testing.assert_allclose(h, naive(*arrays[:3], PACKED)[0], rtol=1e-13)
        for ours, truth in zip(gradients, naive_gradients(*arrays, PACKED)):
            np.testing.assert_allclose(ours, truth, rtol=1e-12, atol=1e-14)


def test_complex_decays_equal_the_recurrence_forms():
    rng = np.random.default_rng(3)
    a = np.exp(-rng.uniform(size=(1, 7, 2)) + 1j * rng.normal(size=(1, 7, 2))).astype(np.complex64)
    x = rng.normal(size=(1, 7, 2)).astype(np.complex64)
    loss = lambda a, x, form: jnp.sum(jnp.abs(linear_scan(a, x, implementation=form)) ** 2)
    ours, truth = (jax.value_and_grad(loss, (0, 1))(a, x, form) for form in ('xla', 'reference'))
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5), ours, truth)


def test_bfloat16_inputs_keep_a_float32_state():
    a = jnp.full((1, 300, 1), 0.999, jnp.bfloat16)  # rounds to 1: a bfloat16 state would stop growing at 256
    h, state = linear_scan(a, jnp.ones_like(a), return_state=True)
    assert h.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert float(state[0, 0]) == 300


@pytest.mark.parametrize('cut', [6, 18])
def test_any_split_into_calls_gives_the_same_outputs(cut):
    a, x, initial_state, *_ = inputs()
    ids = np.array([[0] + [3] * 4 + [0] * 3 + [3] * 11, [1] * 16 + [0] * 3], np.int32)
    scan = lambda part, state: linear_scan(
        a[:, part], x[:, part], initial_state=state, segments=ids[:, part], return_state=True
    )
    whole, final = scan(slice(None), initial_state)
    first, state = scan(slice(cut), initial_state)
    second, state = scan(slice(cut, None), state)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-6)
    np.testing.assert_allclose(state, final, rtol=1e-6)


def test_padding_alone_returns_the_initial_state_and_zeros():
    a, x, initial_state, *_ = inputs()
    x[0, 3] = np.nan  # what stands at padding is never read
    h, state = linear_scan(a, x, initial_state=initial_state, segments=np.zeros((B, T), np.int32), return_state=True)
    np.testing.assert_array_equal(h, np.zeros_like(x))
    np.testing.assert_array_equal(state, initial_state)


def test_a_document_knows_nothing_of_another():
    a, x, *_ = inputs()
    outputs = lambda x: linear_scan(a, x, segments=PACKED)[0, 9:12]  # the document 7
    other = np.ones(T, bool)
    other[9:12] = False
    gradient = jax.grad(lambda x: jnp.sum(outputs(x)))(x)[0]
    np.testing.assert_array_equal(gradient[other], 0)
    assert np.all(gradient[~other] != 0)


def test_the_future_has_gradients_of_exactly_zero():
    a, x, *_ = inputs()
    da, dx = jax.grad(lambda a, x: jnp.sum(linear_scan(a, x)[:, :7]), (0, 1))(a, x)
    np.testing.assert_array_equal(da[:, 7:], 0)
    np.testing.assert_array_equal(dx[:, 7:], 0)
    assert np.all(dx[:, 6] != 0)


def test_vmap_equals_a_loop():
    a, x, initial_state, *_ = inputs()
    scan = lambda a, x, state, ids: linear_scan(a, x, initial_state=state, segments=ids)
    doubled = [np.stack([array, array[::-1]]) for array in (a, x, initial_state, PACKED)]
    np.testing.assert_allclose(jax.vmap(scan)(*doubled)[1], scan(a, x, initial_state, PACKED)[::-1], rtol=1e-6)


def test_rows_and_channels_stay_on_their_devices():
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    shard = NamedSharding(mesh, P('data', None, 'tensor'))
    array = jax.ShapeDtypeStruct((4, 16, 6), np.float32, sharding=shard)
    gradient = jax.grad(lambda a, x: jnp.sum(linear_scan(a, x) ** 2), (0, 1))
    text = jax.jit(gradient, out_shardings=(shard, shard)).lower(array, array).compile().as_text()
    assert 'while' in text and not any(word in text for word in ('all-gather', 'all-to-all', 'collective-permute'))


def test_segment_helpers_follow_their_words():
    row = np.array([[0, 5, 5, 0, 5, 8, 8, 0, 0, 9]], np.int32)
    np.testing.assert_array_equal(segments.openings(row)[0], [0, 1, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(segments.resets(row)[0], [0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(segments.positions(row)[0], [0, 0, 1, 0, 2, 0, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'x': np.zeros((B, T + 1, F), np.float32)}, r'x has shape \(2, 20, 3\)'),
        ({'initial_state': np.zeros((B, F + 1), np.float32)}, 'initial_state has shape'),
        ({'segments': PACKED[:, 1:]}, 'segments has shape'),
        ({'implementation': 'pallas'}, "implementation='pallas'"),
        ({'x': np.zeros((B, T, F), np.int32)}, 'x is int32'),
        ({'a': np.zeros((B, T, F), np.complex64)}, 'a is complex64'),
    ],
)
def test_bad_arguments_are_named(change, message):
    a, x, *_ = inputs()
    with pytest.raises(ValueError, match=message):
        linear_scan(**({'a': a, 'x': x} | change))
