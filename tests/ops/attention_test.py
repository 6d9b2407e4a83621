"""Softmax attention: both forms against a loop in float64, values and gradients, and what the blocks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.ops import attention
from jattn.ops.softmax_attention import cudnn, visibility
from jattn.ops.softmax_attention.reference import attend, attention_mask, attention_pattern, attention_scores
from jattn.ops.softmax_attention.xla import xla_attention

VISIBILITY = ('causal', 'window', 'sinks', 'segments', 'positions')


def locate(q, k, causal=False, window=None, sinks=0, segments=None, positions=None):
    return visibility.locate(q, k, causal, window, sinks, segments, positions)


def blockwise(q, k, v, *, bias=None, softcap=None, scale=None, **options):
    """The xla form in blocks small enough for the sizes of these tests."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return xla_attention(*locate(q, k, **options), q, k, v, bias=bias, softcap=softcap, scale=scale, block=8)


def reference(*args, **options):
    return attention(*args, implementation='reference', **options)


def seen_by_definition(T, S, causal=False, window=None, sinks=0, segments=None, positions=None, batch=2):
    """The mask [B,T,S], token by token, from the words of the definition."""
    pair = lambda x: x if isinstance(x, tuple) else (x, x)
    mask = np.zeros((batch, T, S), bool)
    for b in range(batch):
        ids, places = [], []
        for side, length in enumerate((T, S)):
            ids.append([1] * length if segments is None else list(pair(segments)[side][b]))
            if positions is not None:
                places.append(list(pair(positions)[side][b]))
            else:  # counted within the document
                places.append([sum(other == own for other in ids[-1][:i]) for i, own in enumerate(ids[-1])])
        for t in range(T):
            for s in range(S):
                distance = places[0][t] - places[1][s]
                near = window is None or (distance < window and (causal or -distance < window))
                mask[b, t, s] = (
                    ids[0][t] == ids[1][s] != 0 and (not causal or distance >= 0) and (near or (places[1][s] < sinks))
                )
    return mask


def naive(q, k, v, g, mask, bias=None, softcap=None, scale=None):
    """Output and gradients (dq, dk, dv, dbias) of sum(out * g) in float64 NumPy."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    heads = q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    repeated_k, repeated_v = np.repeat(k, heads, 2), np.repeat(v, heads, 2)
    capped = scores = np.einsum('bthk,bshk->bhts', q, repeated_k) * scale
    if softcap is not None:
        capped = softcap * np.tanh(scores / softcap)
    biased = capped if bias is None else capped + np.asarray(bias, np.float64)
    biased = np.where(mask[:, None], biased, -np.inf)
    largest = np.max(biased, -1, keepdims=True)
    weights = np.exp(biased - np.where(np.isfinite(largest), largest, 0))
    pattern = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    dpattern = np.einsum('bthv,bshv->bhts', g, repeated_v)
    dbiased = pattern * (dpattern - (pattern * dpattern).sum(-1, keepdims=True))
    dscores = scale * dbiased * (1 if softcap is None else 1 - (capped / softcap) ** 2)
    per_key_head = lambda x: x.reshape(*k.shape[:3], heads, -1).sum(3)
    dk = per_key_head(np.einsum('bhts,bthk->bshk', dscores, q))
    dv = per_key_head(np.einsum('bhts,bthv->bshv', pattern, g))
    dq = np.einsum('bhts,bshk->bthk', dscores, repeated_k)
    dbias = None
    if bias is not None:
        axes = tuple(axis for axis in (0, 1) if bias.shape[axis] == 1 and dbiased.shape[axis] != 1)
        dbias = dbiased.sum(axes, keepdims=True)
    return np.einsum('bhts,bshv->bthv', pattern, repeated_v), (dq, dk, dv, dbias)


def inputs(T, S=None, H=4, G=2, K=6, V=5, batch=2, seed=0, dtype=np.float32):
    rng, S = np.random.default_rng(seed), S or T
    shapes = (batch, T, H, K), (batch, S, G, K), (batch, S, G, V), (batch, T, H, V)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def value_and_gradients(function, q, k, v, g, bias=None, **options):
    def run(q, k, v, g, bias):
        out, pull = jax.vjp(lambda q, k, v, bias: function(q, k, v, bias=bias, **options), q, k, v, bias)
        return out, pull(g)

    return jax.jit(run)(q, k, v, g, bias)


def assert_close(ours, truth, tolerance=1e-5):
    """Relative error in the L2 norm of every leaf."""
    flat, flat_truth = jax.tree.leaves(ours), jax.tree.leaves(truth)
    assert len(flat) == len(flat_truth)
    for x, y in zip(flat, flat_truth):
        x = np.asarray(x, np.float64)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-30)


def packed(lengths, total, batch=2):
    """Rows of documents of these lengths from id 1, a negative length being padding; padding up to `total`."""
    ids, document = [], 0
    for length in lengths:
        document += length > 0
        ids += [document if length > 0 else 0] * abs(length)
    row = np.array(ids + [0] * (total - len(ids)), np.int32)
    return np.stack([row] + [np.roll(row, 3)] * (batch - 1))


PACKED = packed([-2, 9, -3, 12, 1], 37)
SHUFFLED = np.stack([np.random.default_rng(s).permutation(37).astype(np.int32) for s in (1, 2)])
RNG = np.random.default_rng(9)

# name: (T, S, options)
CASES = {
    'everybody_sees_everybody': (13, 21, {}),
    'window_both_sides': (37, 37, {'window': 10}),
    'causal_window': (37, 37, {'causal': True, 'window': 10}),
    'causal_window_sinks': (37, 37, {'causal': True, 'window': 5, 'sinks': 3}),
    'segments': (37, 37, {'segments': PACKED}),
    'segments_causal_window_sinks': (37, 37, {'segments': PACKED, 'causal': True, 'window': 4, 'sinks': 2}),
    'a_row_of_padding': (16, 16, {'segments': PACKED[:, :16] * np.array([[0], [1]], np.int32), 'causal': True}),
    'positions_in_no_order': (37, 37, {'positions': SHUFFLED, 'causal': True, 'window': 7, 'sinks': 2}),
    'positions_and_segments_in_no_order': (37, 37, {'positions': SHUFFLED, 'segments': SHUFFLED % 3, 'causal': True}),
    'new_tokens_on_a_cache': (
        5,
        24,
        {
            'causal': True,
            'window': 9,
            'positions': (
                10 + np.arange(10, dtype=np.int32).reshape(2, 5),
                np.stack([np.arange(24, dtype=np.int32)] * 2),
            ),
            'segments': (np.full((2, 5), 3, np.int32), np.repeat([[3] * 16 + [0] * 8], 2, 0).astype(np.int32)),
        },
    ),
    'bias_of_one_row_and_softcap': (
        21,
        21,
        {'bias': RNG.normal(size=(1, 4, 21, 21)).astype(np.float32), 'softcap': 1.5, 'causal': True},
    ),
    'bias_of_one_head': (21, 13, {'bias': RNG.normal(size=(2, 1, 21, 13)).astype(np.float32), 'scale': 0.7}),
    'one_token': (1, 1, {'causal': True}),
}


@pytest.mark.parametrize('case', CASES)
def test_both_forms_equal_the_definition(case):
    T, S, options = CASES[case]
    q, k, v, g = inputs(T, S)
    mask = seen_by_definition(T, S, **{name: value for name, value in options.items() if name in VISIBILITY})
    numbers = {name: value for name, value in options.items() if name not in VISIBILITY}
    truth = naive(q, k, v, g, mask, **numbers)
    assert_close(value_and_gradients(blockwise, q, k, v, g, **options), truth)
    assert_close(value_and_gradients(reference, q, k, v, g, **options), truth)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_the_working_precision_follows_the_inputs(dtype):
    with jax.enable_x64(dtype == 'float64'):
        q, k, v, g = (jnp.asarray(x, dtype) for x in inputs(24, dtype=np.float64))
        truth = naive(q, k, v, g, seen_by_definition(24, 24, causal=True))
        ours = value_and_gradients(blockwise, q, k, v, g, causal=True)
        assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(dtype)}
        assert_close(ours, truth, 1e-2 if dtype == 'bfloat16' else 1e-13)


def test_lengths_beyond_a_block_of_the_usual_size_are_exact():
    q, k, v, g = inputs(1000, H=1, G=1, batch=1)
    truth = naive(q, k, v, g, np.tril(np.ones((1, 1000, 1000), bool)))
    assert_close(value_and_gradients(attention, q, k, v, g, causal=True), truth)


def test_large_scores_lose_nothing():
    q, k, v, g = inputs(24)
    q, k = np.round(4 * q), np.round(4 * k)  # products of whole numbers are exact, so only the softmax can err
    assert np.abs(np.einsum('bthk,bshk->bhts', q[:, :, :2], k)).max() * 16 > 1e3
    truth = naive(q, k, v, g, seen_by_definition(24, 24, causal=True), scale=16.0)
    assert_close(value_and_gradients(blockwise, q, k, v, g, causal=True, scale=16.0), truth)


def test_identical_keys_give_the_mean_of_the_values():
    q, k, v, _ = inputs(24)
    out = jax.jit(blockwise)(q, np.broadcast_to(k[:, :1], k.shape), v)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True).repeat(2, 2), out.shape), atol=1e-6)


@pytest.mark.parametrize('low', [-np.inf, np.finfo(np.float32).min], ids=['inf', 'lowest'])
@pytest.mark.parametrize('form', [blockwise, reference])
def test_a_bias_may_hide_keys_and_whole_rows(form, low):
    q, k, v, g = inputs(16)
    bias = np.zeros((1, 1, 16, 16), np.float32)
    bias[..., 3, :] = bias[..., 5] = low
    truth = naive(q, k, v, g, np.broadcast_to(bias[0] == 0, (2, 16, 16)), bias=np.zeros_like(bias))
    assert_close(value_and_gradients(form, q, k, v, g, bias), truth)


@pytest.mark.parametrize('options', [{}, {'causal': True, 'window': 4}])
def test_padding_gives_zeros_and_gets_no_gradient(options):
    q, k, v, g = inputs(37)
    out, gradients = value_and_gradients(blockwise, q, k, v, g, segments=PACKED, **options)
    for array in (out, *gradients[:3]):
        np.testing.assert_array_equal(array[PACKED == 0], 0)
    for array in (out, gradients[2]):
        assert np.all(np.any(array[PACKED != 0] != 0, axis=(-1, -2)))


@pytest.mark.parametrize('implementation', ['reference', 'xla'])
def test_the_future_has_gradients_of_exactly_zero(implementation):
    q, k, v, _ = inputs(130, batch=1)  # in blocks of 64
    past = lambda *x: jnp.sum(attention(*x, causal=True, implementation=implementation)[:, :101] ** 2)
    for gradient in jax.jit(jax.grad(past, (0, 1, 2)))(q, k, v):
        np.testing.assert_array_equal(gradient[:, 101:], 0)
        assert np.all(np.any(gradient[:, 1:101] != 0, axis=(-1, -2)))


def test_dead_blocks_are_never_computed():
    q, k, v, g = inputs(40)
    k[:, 16:24] = v[:, 16:24] = np.nan  # a block that is future for the queries before it, and far past for the last
    out, gradients = value_and_gradients(blockwise, q, k, v, g, causal=True, window=8)
    seen = np.r_[0:16, 32:40]
    assert np.all(np.isfinite(out[:, seen])) and np.all(np.isfinite(gradients[0][:, seen]))
    assert not np.any(np.isfinite(out[:, 16:24]))


@pytest.mark.parametrize('case', [case for case in CASES if 'bias' not in case])
def test_blocks_are_dropped_only_where_nothing_is_visible(case):
    T, S, options = CASES[case]
    rule, query, key = locate(*inputs(T, S)[:2], **options)
    order, number = visibility.live_blocks(rule, query.blocks(4), key.blocks(4))
    live = np.zeros((-(-T // 4), -(-S // 4)), bool)
    for i, count in enumerate(number):
        live[i, order[i, :count]] = True
    mask = np.pad(seen_by_definition(T, S, **options), ((0, 0), (0, -T % 4), (0, -S % 4)))
    needed = mask.reshape(2, live.shape[0], 4, live.shape[1], 4).any((0, 2, 4))
    assert np.all(live >= needed)
    if 'no_order' not in case:  # where segments and positions rise, few blocks are computed in vain
        assert live.sum() <= needed.sum() + 2


def test_vmap_and_scan_equal_a_loop():
    q, k, v, _ = (np.stack([x, x[:, ::-1]]) for x in inputs(16))
    ids = np.stack([PACKED[:, :16], PACKED[:, 5:21]])
    loss = lambda q, k, v, ids: jnp.sum(blockwise(q, k, v, causal=True, segments=ids) ** 2)
    one = jax.jit(jax.grad(loss))
    loop = np.stack([one(*x) for x in zip(q, k, v, ids)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(q, k, v, ids), loop, atol=1e-5)
    scanned = jax.lax.scan(lambda _, x: (None, one(*x)), None, (q, k, v, ids))[1]
    np.testing.assert_allclose(scanned, loop, atol=1e-5)


@pytest.mark.parametrize('rows', ['whole', 'packed'])
def test_rows_and_heads_stay_on_their_devices(rows):
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    shard = NamedSharding(mesh, P('data', None, 'tensor'))
    arrays = [jax.device_put(x, shard) for x in inputs(32)]
    options = {'causal': True} if rows == 'whole' else {'causal': True, 'segments': PACKED[:, :32]}
    run = lambda q, k, v, g: jax.vjp(lambda *x: blockwise(*x, **options), q, k, v)[1](g)
    compiled = jax.jit(run, out_shardings=(shard,) * 3).lower(*arrays).compile()
    # Packed rows agree on the table of live blocks (a few numbers) by one reduction.
    collectives = ['all-gather', 'all-to-all', 'collective-permute'] + (['all-reduce'] if rows == 'whole' else [])
    assert not [word for word in collectives if word in compiled.as_text()]
    assert_close(compiled(*arrays), naive(*arrays, seen_by_definition(32, 32, **options))[1][:3])


def test_memory_grows_with_the_length_not_its_square():
    def temporaries(T):
        x = jax.ShapeDtypeStruct((1, T, 2, 8), np.float32)
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, causal=True, segments=jnp.ones((1, T), jnp.int32)))
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(2048), temporaries(8192)
    assert long < 5 * short
    assert long < 8192**2  # an eighth of the scores


def test_a_few_queries_take_the_direct_form():
    q, k, v, _ = inputs(3, 50)
    text = lambda **options: jax.jit(lambda *x: attention(*x, **options)).lower(q, k, v).as_text()
    assert 'while' not in text() and 'while' in text(implementation='xla')


def test_the_steps_of_the_reference_can_be_read_and_edited():
    q, k, v, _ = inputs(10)
    options = {'causal': True, 'segments': PACKED[:, :10]}
    mask = attention_mask(q, k, **options)
    scores = attention_scores(q, k, mask, softcap=2.0)
    pattern = attention_pattern(scores, mask)
    assert scores.shape == pattern.shape == (2, 4, 10, 10) and mask.shape == (2, 10, 10)
    hidden = np.broadcast_to(~mask[:, None], scores.shape)
    assert np.all(np.isfinite(scores)) and np.all(scores[hidden] < -1e38) and np.all(pattern[hidden] == 0)
    np.testing.assert_allclose(pattern.sum(-1), np.broadcast_to(mask.any(-1)[:, None], (2, 4, 10)), rtol=1e-6)
    np.testing.assert_allclose(attend(pattern, v), attention(q, k, v, softcap=2.0, **options), atol=1e-6)
    # A pattern that copies key 1 to every query: heads 2 and 3 read the second head of values.
    copied = attend(jnp.zeros_like(pattern).at[..., 1].set(1), v)
    np.testing.assert_allclose(copied, np.broadcast_to(v[:, 1:2, [0, 0, 1, 1]], copied.shape), rtol=1e-6)


def test_a_gpu_host_lowers_cudnn_for_cuda_alone(monkeypatch):
    q, k, v, _ = inputs(16, G=4, V=6)
    monkeypatch.setattr(cudnn, 'why_not', lambda *args, **options: None)
    monkeypatch.setattr(cudnn, 'cudnn_attention', lambda rule, scale, q, k, v: jnp.arctan(q))
    traced = jax.jit(lambda *x: attention(*x, causal=True)).trace(q, k, v)
    assert 'atan' in traced.lower(lowering_platforms=('cuda',)).as_text()
    for platform in ('cpu', 'tpu'):
        assert 'atan' not in traced.lower(lowering_platforms=(platform,)).as_text()
    np.testing.assert_allclose(attention(q, k, v, causal=True), reference(q, k, v, causal=True), atol=1e-5)


@pytest.mark.parametrize('options', [{}, {'causal': True}, {'causal': True, 'window': 3}])
def test_the_call_of_cudnn_means_what_ours_means(options, monkeypatch):
    q, k, v, _ = inputs(16, G=2, V=6)
    peer = jax.nn.dot_product_attention
    in_xla = lambda *args, **named: peer(*args, **(named | {'implementation': 'xla'}))
    monkeypatch.setattr(jax.nn, 'dot_product_attention', in_xla)
    ours = reference(q, k, v, scale=0.3, **options)
    np.testing.assert_allclose(cudnn.cudnn_attention(visibility.Rule(**options), 0.3, q, k, v), ours, atol=1e-5)


HALF = [jnp.zeros((2, 16, 4, 8), jnp.bfloat16)] * 3
IDS = np.ones((2, 16), np.int32)


@pytest.mark.parametrize(
    ('arrays', 'options', 'reason'),
    [
        (inputs(16)[:3], {}, 'float16'),
        ([x[..., :6] for x in HALF], {}, 'multiple of 8'),
        ([*HALF[:2], HALF[2][..., :4]], {}, 'V=4 must be equal'),
        (HALF, {'window': 4}, 'window=4 needs causal=True'),
        (HALF, {'softcap': 1.0, 'segments': IDS}, 'softcap, segments'),
        (HALF, {'bias': np.zeros((1, 1, 16, 16), np.float32)}, 'bias'),
        (HALF, {'causal': True, 'positions': IDS}, 'positions'),
        (HALF, {'causal': True, 'window': 4, 'sinks': 1}, 'sinks'),
        (HALF, {'causal': True}, "backend is 'cpu'"),
    ],
)
def test_cudnn_by_name_says_why_it_cannot(arrays, options, reason):
    with pytest.raises(ValueError, match=f"implementation='cudnn' cannot serve this call.*{reason}"):
        attention(*arrays, implementation='cudnn', **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'k': np.zeros((2, 13, 2, 5), np.float32)}, 'k has shape .* K=6'),
        ({'v': np.zeros((2, 12, 2, 5), np.float32)}, 'v has shape .* S=13'),
        ({'q': np.zeros((2, 21, 3, 6), np.float32)}, 'H=3 heads, but a multiple of the G=2'),
        ({'q': np.zeros((2, 21, 4, 6), np.int32)}, 'q is int32'),
        ({'causal': True}, 'T=21 queries and S=13 keys need positions'),
        ({'window': 3}, 'need positions'),
        ({'window': 0}, 'window=0'),
        ({'sinks': -1}, 'sinks=-1'),
        ({'softcap': 0.0}, 'softcap=0.0'),
        ({'scale': jnp.ones(())}, 'a plain number was expected'),
        ({'segments': np.ones((2, 21), np.int32)}, r'key segments are int32\(2, 21\)'),
        ({'positions': (np.ones((2, 21)), np.ones((2, 13), np.int32))}, 'query positions are float64'),
        ({'segments': (np.ones((2, 21), np.int32),) * 3}, 'segments has 3 parts'),
        ({'bias': np.zeros((3, 1, 21, 13), np.float32)}, 'bias has shape'),
        ({'bias': np.zeros((21, 13), np.float32)}, 'bias has shape'),
        ({'bias': np.zeros((1, 1, 1, 13), np.float32)}, 'bias has shape'),
        ({'implementation': 'flash'}, "implementation='flash'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    q, k, v, _ = inputs(21, 13)
    with pytest.raises(ValueError, match=message):
        attention(**({'q': q, 'k': k, 'v': v} | options))
