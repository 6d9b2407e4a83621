"""Routing attention against all pairs and against lists written out, its centroids, its causality, and its cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.routing import RoutingConfig
from jattn.mixers.softmax import SoftmaxConfig
from jattn.nn.centroids import Centroids, distances, layer_norm
from jattn.nn.clustered_attention import Relative, attend_ranks, document_ids, prefix_attention, top_lists
from jattn.ops import attention
from jattn.taps import Edit
from tests.mixers.packed import PACKED, X, assert_calls_are

D, H, C, W = 32, 2, 3, 4
CFG = RoutingConfig(width=D, heads=4, local_heads=2, window=5, clusters=C, members=W)
ALONE = RoutingConfig(width=D, heads=H, local_heads=0, clusters=C, members=W)
TOP = RoutingConfig(width=D, heads=H, local_heads=0, clusters=C, members=W, selection='top')


@functools.cache
def variables_of(cfg):
    """Those of init, the parameters moved at random."""
    variables = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), X))
    random = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.1 * random.normal(size=p.shape).astype(np.float32), variables['params'])
    return variables | {'params': moved}


@functools.cache
def run(cfg, train=False):
    """The compiled call `(variables, x, segments) -> outputs, {taps, losses, metrics, mixer_state}`."""

    @jax.jit
    def call(variables, x, segments):
        collections = ['taps', 'losses', 'metrics', 'mixer_state']
        context = Context(segments=segments, train=train)
        (y, _), found = cfg.make().apply(variables, x, context, mutable=collections)
        return y, found

    return call


def found(cfg, x=X, segments=None, train=False, **variables):
    return run(cfg, train)(variables_of(cfg) | variables, x, segments)[1]


def all_pairs(q, v, cluster, segments, *, members, relative, scale, mask_self):
    """Prefix selection by a mask over all pairs; q and v [B, H, T, K]."""
    same = (cluster[..., :, None] == cluster[..., None, :]) & (segments[:, :, None] == segments[:, None])[:, None]
    older = np.tril(same & (segments > 0)[:, None, :, None])
    number = np.sum(older, axis=-1)  # of the token in its cluster's list
    rank = number[..., :, None] - number[..., None, :]
    seen = older & (rank < members)
    itself = np.eye(seen.shape[-1], dtype=bool)[None, None]
    if mask_self:
        others = seen & ~itself
        seen = np.where(np.any(others, axis=-1, keepdims=True), others, seen)
    rank = np.clip(rank, 0, members - 1)
    logits = jnp.einsum('bhtk,bhsk->bhts', q, q)
    if relative is not None:
        logits = logits + jnp.einsum('bhtk,bhtsk->bhts', q, relative.k[rank])
    logits = jnp.where(seen, logits * (1.0 if scale is None else scale), -1e30)
    pattern = jax.nn.softmax(logits, axis=-1) * seen
    z = jnp.einsum('bhts,bhsv->bhtv', pattern, v)
    return z if relative is None else z + jnp.einsum('bhts,bhtsv->bhtv', pattern, relative.v[rank])


def drawn(tokens, dtype=np.float64):
    """q (layer-normed), v, clusters and segments, T of them."""
    random = np.random.default_rng(3)
    q, v = random.normal(size=(2, 2, H, tokens, 8)).astype(dtype)
    q = (q - q.mean(-1, keepdims=True)) / q.std(-1, keepdims=True)
    cluster = random.integers(0, C, size=(2, H, tokens)).astype(np.int32)
    segments = np.sort(random.integers(1, 4, size=(2, tokens)), axis=1).astype(np.int32)
    segments[:, ::7] = 0
    return q, v, cluster, segments


@pytest.mark.parametrize('tokens, members', [(37, 1), (37, 3), (70, 20), (37, 500)])
@pytest.mark.parametrize('mask_self', [False, True], ids=['with_self', 'without_self'])
def test_blocks_of_laid_out_clusters_equal_a_mask_over_all_pairs_in_value_and_gradient(tokens, members, mask_self):
    with jax.enable_x64(True):
        q, v, cluster, segments = drawn(tokens)
        tables = Relative(*np.random.default_rng(4).normal(size=(2, members, 8)))
        weights = np.random.default_rng(5).normal(size=v.shape)
        options = dict(members=members, scale=0.5, mask_self=mask_self)

        def by_blocks(q, v, tables):
            ids = document_ids(segments, jnp.ones(2, jnp.int32), cluster, C)
            attend = functools.partial(attend_ranks, relative=tables, **options)
            z = prefix_attention(q, v, cluster, ids, C, members, attend)
            return jnp.sum(weights * jnp.sin(z)), z

        def by_pairs(q, v, tables):
            z = all_pairs(q, v, cluster, segments, relative=tables, **options)
            return jnp.sum(weights * jnp.sin(z)), z

        ours, exact = (
            jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, v, tables) for f in (by_blocks, by_pairs)
        )
        for own, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(exact)):
            np.testing.assert_allclose(own, expected, atol=1e-11)


def inner(cfg, captured, local=0):
    """LN of the routing heads' queries, their values and clusters, heads second; from the taps."""
    q, v, scores = (np.asarray(captured['taps'][name]) for name in ('q', 'v', 'gates'))
    parts = layer_norm(q[:, :, local:]), v[:, :, local:], np.argmax(scores, axis=-1)
    return tuple(np.moveaxis(np.asarray(part), 2, 1) for part in parts)


@pytest.mark.parametrize('options', [{}, dict(mask_self=True, scale=0.3, relative=False)], ids=['published', 'options'])
def test_routing_heads_are_all_pairs_within_clusters_of_their_normed_queries(options):
    cfg = RoutingConfig(width=D, heads=4, local_heads=2, window=5, clusters=C, members=W, **options)
    captured = found(cfg, segments=PACKED)
    q, v, cluster = inner(cfg, captured, local=2)
    p = variables_of(cfg)['params']
    tables = Relative(p['rank_k'], p['rank_v']) if cfg.relative else None
    z = all_pairs(q, v, cluster, PACKED, members=W, relative=tables, scale=cfg.scale, mask_self=cfg.mask_self)
    np.testing.assert_allclose(captured['taps']['z'][:, :, 2:], np.moveaxis(z, 1, 2), atol=1e-5)
    mu = Centroids(**variables_of(cfg)['mixer_state']).means()
    np.testing.assert_allclose(captured['taps']['gates'], np.einsum('bhtk,hck->bthc', q, mu), atol=1e-5)


def test_local_heads_are_softmax_attention_over_a_window():
    p = variables_of(CFG)['params']
    own = {name: {'kernel': p[name]['kernel'][:, :2]} for name in ('q_proj', 'k_proj', 'v_proj')}
    own['o_proj'] = {'kernel': p['o_proj']['kernel'][:2]}
    plain = SoftmaxConfig(width=D, heads=2, head_dim=8, window=5)
    _, captured = plain.make().apply({'params': own}, X, Context(segments=PACKED), mutable=['taps'])
    z = found(CFG, segments=PACKED)['taps']['z'][:, :, :2]
    np.testing.assert_allclose(z[PACKED > 0], captured['taps']['z'][PACKED > 0], atol=1e-5)


def listed(q, v, scores, segments, relative, members):
    """Top selection, list by list; the outputs and in how many lists each token is."""
    z, count = np.zeros_like(v), np.zeros(v.shape[:3])
    for b, h, c in np.ndindex(*v.shape[:2], scores.shape[-1]):
        real = np.flatnonzero(segments[b] > 0)
        best = np.sort(real[np.argsort(-scores[b, real, h, c], kind='stable')][:members])
        for n, t in enumerate(best):
            seen = [m for m in range(n + 1) if segments[b, best[m]] == segments[b, t]]
            ranks = n - np.array(seen)
            keys = q[b, h, best[seen]] + relative.k[ranks]
            weights = np.exp(keys @ q[b, h, t] - 8.0)
            z[b, h, t] += weights @ (v[b, h, best[seen]] + relative.v[ranks]) / np.sum(weights)
            count[b, h, t] += 1
    return z / np.maximum(count, 1)[..., None], count


def test_top_selection_is_attention_in_every_list_and_the_mean_over_the_lists_of_a_token():
    captured = found(TOP, segments=PACKED)
    q, v, _ = inner(TOP, captured)
    p = variables_of(TOP)['params']
    tables = Relative(*(np.asarray(p[name]) for name in ('rank_k', 'rank_v')))
    z, count = listed(q, v, np.asarray(captured['taps']['gates']), PACKED, tables, W)
    np.testing.assert_allclose(captured['taps']['z'], np.moveaxis(z, 1, 2), atol=1e-5)
    assert set(np.unique(count)) >= {0.0, 1.0, 2.0}  # tokens in no list, in one, and in several


def test_lists_are_sorted_without_repeats_and_hold_as_many_tokens_as_they_have_places():
    scores = jax.random.normal(jax.random.key(2), (2, H, 13, C))
    index, filled = (np.asarray(part) for part in top_lists(scores, PACKED > 0, W))
    assert np.all(filled) and index.shape == (2, H, C, W)
    assert np.all(np.diff(index, axis=-1) > 0)
    members = [np.bincount(index[b, h].ravel(), minlength=13) for b in range(2) for h in range(H)]
    assert np.all(np.sum(members, axis=1) == C * W)
    assert np.all(PACKED[np.arange(2)[:, None, None, None], index] > 0)
    _, filled = top_lists(scores, np.arange(13)[None] < np.array([[2], [13]]), W)
    np.testing.assert_array_equal(np.sum(filled, axis=-1), [[[2] * C] * H, [[W] * C] * H])


@pytest.mark.parametrize('selection', ['prefix', 'top'])
def test_one_cluster_as_long_as_the_text_is_full_attention_with_shared_normed_queries(selection):
    cfg = RoutingConfig(width=D, heads=H, local_heads=0, clusters=1, members=13, selection=selection, relative=False)
    captured = found(cfg)
    q, v = layer_norm(captured['taps']['q']), captured['taps']['v']
    np.testing.assert_allclose(captured['taps']['z'], attention(q, q, v, causal=True, scale=1.0), atol=1e-5)


def test_outputs_of_prefix_selection_do_not_depend_on_later_tokens_bit_for_bit():
    x = np.asarray(jax.random.normal(jax.random.key(6), (2, 60, D)))
    cfg = RoutingConfig(width=D, heads=4, local_heads=2, window=5, clusters=C, members=20)
    y, _ = run(cfg)(variables_of(cfg), x, None)
    for t, seed in ((7, 0), (20, 1), (33, 2), (55, 3)):
        later = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
        changed, _ = run(cfg)(variables_of(cfg), np.where(np.arange(60)[None, :, None] > t, later, x), None)
        np.testing.assert_array_equal(changed[:, : t + 1], y[:, : t + 1])
        assert np.all(np.any(changed[:, t + 1 :] != y[:, t + 1 :], axis=-1))


def test_in_top_selection_values_never_leak_but_membership_does():
    y, _ = run(TOP)(variables_of(TOP), X, None)
    after = jnp.arange(13)[None, :, None, None] > 6
    edits = {'edits': {'v': Edit(value=jnp.full((), 9.0), mask=after)}}
    other_values, _ = run(TOP)(variables_of(TOP) | edits, X, None)
    np.testing.assert_array_equal(other_values[:, :7], y[:, :7])
    assert np.any(other_values[:, 7:] != y[:, 7:])
    other_tokens, _ = run(TOP)(variables_of(TOP), np.where(np.arange(13)[None, :, None] > 6, -X, X), None)
    assert np.any(np.abs(other_tokens[:, :7] - y[:, :7]) > 1e-3)


@pytest.mark.parametrize('cfg', [ALONE, TOP], ids=['prefix', 'top'])
@pytest.mark.parametrize('edit', [Edit(add=jnp.array(3.0)), Edit(scale=jnp.array(5.0))], ids=['shift', 'scale'])
def test_a_constant_on_all_channels_of_the_queries_or_a_factor_changes_nothing(cfg, edit):
    y, _ = run(cfg)(variables_of(cfg), X, None)
    edited, _ = run(cfg)(variables_of(cfg) | {'edits': {'q': edit}}, X, None)
    np.testing.assert_allclose(edited, y, atol=2e-5)


@pytest.mark.parametrize('size', [1, 5])
def test_step_by_step_equals_parallel(size):
    variables = variables_of(CFG)
    whole, _ = run(CFG)(variables, X, PACKED)
    assert_calls_are(whole, CFG, variables, X, PACKED, size)
    assert CFG.state_bytes(10) == CFG.state_bytes(10**6)


def clouds(count=64, spread=0.3):
    """Tokens [B, T, H, K] around C far directions, and which direction each belongs to."""
    random = np.random.default_rng(7)
    centres = np.asarray(layer_norm(random.normal(size=(H, C, 8))))
    which = np.tile(np.arange(C)[:, None], (2, count, H))
    q = centres[np.arange(H)[None, None], which] + spread * random.normal(size=(*which.shape, 8))
    return layer_norm(q.astype(np.float32)), which, centres


def fresh(mu):
    return Centroids(jnp.ones(mu.shape[:2], jnp.float32), jnp.asarray(mu, jnp.float32))


@functools.cache
def steps(count, decay):
    """Compiled: `count` updates by the same tokens, each in its argmax cluster, or in a given one."""

    @jax.jit
    def update(centroids, q, which=None):
        def step(centroids, _):
            scores = jnp.einsum('bthk,hck->bthc', q, centroids.means())
            joined = jax.nn.one_hot(jnp.argmax(scores, axis=-1) if which is None else which, C, dtype=jnp.float32)
            return centroids.moved(q, joined, decay, Context()), None

        return jax.lax.scan(step, centroids, length=count)[0]

    return update


def means_of(q, which):
    return np.stack([[np.mean(q[:, :, h][which[:, :, h] == c], axis=0) for c in range(C)] for h in range(H)])


@pytest.mark.parametrize('count, decay', [(400, 0.95), (1, 0.0)], ids=['many', 'no_decay'])
def test_centroids_of_constant_clusters_become_their_means_and_without_decay_at_once(count, decay):
    q, which, centres = clouds()
    moved = steps(count, decay)(fresh(-centres), q, which)
    np.testing.assert_allclose(moved.means(), means_of(np.asarray(q), which), atol=1e-5)
    np.testing.assert_allclose(moved.counts, np.full((H, C), 128.0), rtol=1e-5)


@pytest.mark.parametrize('seed', [5, 15, 22])
def test_planted_clusters_are_recovered_in_a_few_updates_from_centroids_near_them(seed):
    """No update parts two directions that share their largest centroid, so a random start may fail."""
    q, which, centres = clouds()
    start = fresh(layer_norm(centres + 0.8 * np.random.default_rng(seed).normal(size=centres.shape)))
    joined = lambda centroids: np.argmax(np.einsum('bthk,hck->bthc', q, centroids.means()), axis=-1)
    assert np.mean(joined(start) == which) < 0.93
    after = steps(5, 0.9)(start, q)
    np.testing.assert_array_equal(joined(after), which)
    scores = np.einsum('bthk,hck->bhtc', q, after.means())
    index, _ = top_lists(scores, np.ones(which.shape[:2], bool), q.shape[1] // C)
    taken = np.take_along_axis(np.moveaxis(which, 2, 1)[:, :, None], np.asarray(index), axis=-1)
    assert np.mean(taken == np.arange(C)[None, None, :, None]) > 0.99  # the largest S is not always the nearest mu


def test_a_centroid_that_no_token_joins_stays_where_it_is():
    q, which, centres = clouds()
    moved = steps(20, 0.9)(fresh(centres), q, np.minimum(which, 1))
    np.testing.assert_allclose(moved.means()[:, 2], centres[:, 2], rtol=1e-3)


def test_training_updates_the_centroids_by_real_tokens_and_evaluation_leaves_them_bit_for_bit():
    old = variables_of(CFG)['mixer_state']
    for name, value in found(CFG, segments=PACKED)['mixer_state'].items():
        np.testing.assert_array_equal(value, old[name])
    captured = found(CFG, segments=PACKED, train=True)
    q, _, cluster = inner(CFG, captured, local=2)
    joined = np.eye(C)[cluster] * (PACKED > 0)[:, None, :, None]
    new = captured['mixer_state']
    np.testing.assert_allclose(new['counts'], 0.999 + 0.001 * np.sum(joined, axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        new['sums'], 0.999 * old['sums'] + 0.001 * np.einsum('bhtc,bhtk->hck', joined, q), atol=1e-5
    )
    np.testing.assert_array_equal(
        run(CFG, True)(variables_of(CFG), X, PACKED)[0], run(CFG)(variables_of(CFG), X, PACKED)[0]
    )


def test_two_devices_with_half_the_rows_update_and_lose_as_one_with_all():
    whole = found(CFG, segments=PACKED, train=True)

    def half(x, segments):
        context = Context(segments=segments, train=True, axis='rows')
        return CFG.make().apply(variables_of(CFG), x, context, mutable=['mixer_state', 'losses', 'metrics'])[1]

    halves = jax.pmap(half, axis_name='rows', devices=jax.devices()[:2])(X[:, None], PACKED[:, None])
    for name in ('mixer_state', 'losses', 'metrics'):
        jax.tree.map(
            lambda own, of_all: np.testing.assert_allclose(own, np.stack([of_all, of_all]), atol=1e-5),
            dict(halves)[name],
            dict(whole)[name],
        )


def test_centroids_start_at_the_length_of_the_queries_and_keep_it():
    mu = Centroids(**variables_of(CFG)['mixer_state']).means()
    np.testing.assert_allclose(np.linalg.norm(mu, axis=-1), np.full((2, C), 8**0.5), rtol=1e-3)
    after = Centroids(**found(CFG, train=True)['mixer_state']).means()
    assert np.all(np.linalg.norm(after, axis=-1) < 1.001 * 8**0.5)


def test_the_commitment_is_twice_the_mean_square_to_the_tokens_centroid_and_0_on_it():
    captured = found(CFG, segments=PACKED)
    q, _, cluster = inner(CFG, captured, local=2)
    mu = np.asarray(Centroids(**variables_of(CFG)['mixer_state']).means())
    squares = np.mean((q - mu[np.arange(2)[None, :, None], cluster]) ** 2, axis=-1)
    expected = 2 * np.mean(np.moveaxis(squares, 1, 2)[PACKED > 0])
    np.testing.assert_allclose(captured['losses']['commitment'], expected, rtol=1e-5)
    _, which, centres = clouds()
    np.testing.assert_array_equal(distances(centres[np.arange(H)[None, None], which], centres, which), 0)


def test_the_gradient_of_the_commitment_reaches_the_queries_and_not_the_centroids():
    def loss(params, slow):
        variables = {'params': params, 'mixer_state': slow}
        return CFG.make().apply(variables, X, mutable=['losses'])[1]['losses']['commitment']

    variables = variables_of(CFG)
    grads, of_centroids = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables['params'], variables['mixer_state'])
    assert {name for name, grad in grads.items() if any(np.any(g != 0) for g in jax.tree.leaves(grad))} == {'q_proj'}
    assert np.all(grads['q_proj']['kernel'][:, :2] == 0)  # local heads have no centroids
    assert all(np.all(grad == 0) for grad in jax.tree.leaves(of_centroids))


@pytest.mark.parametrize('selection', ['prefix', 'top'])
def test_operations_grow_linearly_at_fixed_clusters_and_members(selection):
    cfg = RoutingConfig(width=D, clusters=4, members=16, selection=selection)
    linear = [cfg.flops(4 * tokens) / cfg.flops(tokens) for tokens in (512, 2048)]
    assert max(linear) < 4.05
    assert SoftmaxConfig(width=D).flops(2048) / SoftmaxConfig(width=D).flops(512) > 13


def test_memory_grows_linearly():
    def temporaries(tokens):
        cfg = RoutingConfig(width=D, clusters=4, members=16)
        mixer, x = cfg.make(), jax.ShapeDtypeStruct((1, tokens, D), jnp.float32)
        variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
        slow = variables.pop('mixer_state')
        loss = lambda variables, slow, x: jnp.sum(mixer.apply(variables | {'mixer_state': slow}, x)[0])
        lowered = jax.jit(jax.grad(loss)).lower(variables, slow, x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 4.5 * temporaries(256)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(selection='best'), "selection='best' must be one of prefix, top"),
        (dict(local_heads=4), 'local_heads=4 must be at least 0 and below heads=4'),
        (dict(local_heads=-1), 'local_heads=-1 must be at least 0 and below heads=4'),
        (dict(clusters=0), 'clusters=0 must be at least 1'),
        (dict(members=0), 'members=0 must be at least 1'),
        (dict(window=0), 'window=0 must be at least 1'),
        (dict(decay=1.5), 'decay=1.5 must be between 0 and 1'),
        (dict(heads=32), 'head_dim=1 must be even'),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(width=D, **fields)


def test_top_selection_is_not_causal_and_has_no_state():
    assert CFG.causal and not TOP.causal
    with pytest.raises(ValueError, match="selection='top' is not causal and has no state"):
        TOP.init_state(1, 10)
