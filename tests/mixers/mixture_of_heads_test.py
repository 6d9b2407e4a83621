"""MoH against its gates written out in numpy, its special cases, its balance loss, and what tunes a trained layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig, from_softmax, norm_scores
from jattn.mixers.softmax import SoftmaxConfig
from jattn.taps import Edit
from tests.mixers.packed import PACKED, X, assert_calls_are, parameters

H, D = 8, 32
CFG = MixtureOfHeadsConfig(width=D, heads=H, shared=2, active=4)
ROUTERS = ('shared_router', 'routed_router', 'stage_router')


@functools.cache
def run(cfg):
    """The compiled call `(variables, x, segments) -> outputs, {taps, losses, metrics}`."""

    @jax.jit
    def call(variables, x, segments):
        apply = functools.partial(cfg.make().apply, mutable=['taps', 'losses', 'metrics'])
        (y, _), found = apply(variables, x, Context(segments=segments))
        return y, found

    return call


def found(cfg, params, x=X, segments=None):
    return run(cfg)({'params': params}, x, segments)[1]


def gates_of(cfg, params, x=X):
    return np.asarray(found(cfg, params, x)['taps']['gates'])


def balance(cfg, params, x=X, segments=None):
    return found(cfg, params, x, segments)['losses']['load_balance']


def with_routers(params, kernel):
    """The same projections; every router's kernel is `kernel` of its own."""
    own = {name: {'kernel': kernel(p['kernel'])} if name in ROUTERS else p for name, p in params.items()}
    return own


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def written_out(cfg, params, x=X):
    """The gates, in float64."""
    shared, routed, stage = (softmax(np.float64(x) @ np.float64(params[name]['kernel'])) for name in ROUTERS)
    order = np.argsort(-routed, axis=-1, kind='stable')
    chosen = np.zeros_like(routed)
    np.put_along_axis(chosen, order[..., : cfg.active], 1.0, axis=-1)
    routed = routed * chosen
    if cfg.gates == 'renormalised':
        shared, stage = cfg.shared * shared, 2 * stage
        routed = cfg.active * routed / np.sum(routed, axis=-1, keepdims=True)
    return np.concatenate([stage[..., :1] * shared, stage[..., 1:] * routed], axis=-1)


@pytest.mark.parametrize('gates', ['renormalised', 'paper'])
def test_gates_are_the_equations_in_both_forms_and_weigh_the_heads_before_the_output_projection(gates):
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=2, active=4, gates=gates)
    params = parameters(cfg)
    own = gates_of(cfg, params)
    np.testing.assert_allclose(own, written_out(cfg, params), atol=1e-5)
    plain = {name: p for name, p in params.items() if name not in ROUTERS}
    _, captured = SoftmaxConfig(width=D, heads=H).make().apply({'params': plain}, X, mutable=['taps'])
    z = own[..., None] * np.asarray(captured['taps']['z'])
    y, _ = run(cfg)({'params': params}, X, None)
    np.testing.assert_allclose(y, np.einsum('bthv,hvd->btd', z, params['o_proj']['kernel']), atol=1e-5)


def test_with_zero_routers_and_all_heads_active_it_is_softmax_attention():
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=2, active=6)
    params = with_routers(parameters(cfg), np.zeros_like)
    np.testing.assert_allclose(gates_of(cfg, params), np.ones((2, 13, H)), atol=1e-6)
    plain = {name: p for name, p in params.items() if name not in ROUTERS}
    expected, _ = SoftmaxConfig(width=D, heads=H).make().apply({'params': plain}, X)
    np.testing.assert_allclose(run(cfg)({'params': params}, X, None)[0], expected, atol=1e-6)


def test_k_routed_gates_of_a_token_are_not_zero_and_each_stage_sums_to_twice_its_share():
    params = parameters(CFG)
    gates = gates_of(CFG, params)
    stage = softmax(X @ params['stage_router']['kernel'])
    np.testing.assert_array_equal(np.sum(gates[..., 2:] != 0, axis=-1), np.full((2, 13), 4))
    np.testing.assert_allclose(np.sum(gates[..., 2:], axis=-1), 2 * stage[..., 1] * 4, rtol=1e-5)
    np.testing.assert_allclose(np.sum(gates[..., :2], axis=-1), 2 * stage[..., 0] * 2, rtol=1e-5)


def test_heads_that_are_all_shared_are_a_weighted_sum_without_stages_or_balance():
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=H, active=0)
    params = parameters(cfg)
    assert set(params) & set(ROUTERS) == {'shared_router'}
    gates = H * softmax(X @ params['shared_router']['kernel'])
    np.testing.assert_allclose(gates_of(cfg, params), gates, atol=1e-5)
    assert not found(cfg, params).get('losses')


def test_heads_that_are_all_routed_have_no_stages():
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=0, active=3)
    params = parameters(cfg)
    assert set(params) & set(ROUTERS) == {'routed_router'}
    np.testing.assert_allclose(np.sum(gates_of(cfg, params), axis=-1), np.full((2, 13), 3.0), rtol=1e-5)


def test_one_shared_head_has_no_router_and_the_gate_of_its_stage():
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=1, active=1)
    params = parameters(cfg)
    assert set(params) & set(ROUTERS) == {'routed_router', 'stage_router'}
    stage = 2 * softmax(X @ params['stage_router']['kernel'])
    gates = gates_of(cfg, params)
    np.testing.assert_allclose(gates[..., 0], stage[..., 0], atol=1e-5)
    np.testing.assert_allclose(np.max(gates[..., 1:], axis=-1), stage[..., 1], atol=1e-5)  # constant in W_r: K=1


def test_the_output_projection_of_a_head_that_a_token_did_not_take_has_no_say():
    params = parameters(CFG)
    taken = gates_of(CFG, params)[..., 2] != 0
    cut = params | {'o_proj': {'kernel': params['o_proj']['kernel'] * (np.arange(H) != 2)[:, None, None]}}
    y, without = (np.asarray(run(CFG)({'params': p}, X, None)[0]) for p in (params, cut))
    np.testing.assert_array_equal(without[~taken], y[~taken])
    assert np.all(np.any(without[taken] != y[taken], axis=-1)) and 0 < np.sum(taken) < taken.size


def test_the_balance_loss_is_k_for_a_uniform_router_and_e_where_all_tokens_share_k_heads():
    params = parameters(CFG)
    np.testing.assert_allclose(balance(CFG, with_routers(params, np.zeros_like)), 4, rtol=1e-6)
    x = X.copy()
    x[..., 0] = 1.0
    same = np.zeros((D, 6), np.float32)
    same[0, 1:5] = 60.0
    collapsed = params | {'routed_router': {'kernel': same}}
    np.testing.assert_allclose(balance(CFG, collapsed, x), 6, rtol=1e-6)
    np.testing.assert_array_equal(found(CFG, collapsed, x)['metrics']['head_load'], [0, 1, 1, 1, 1, 0])


def test_the_gradient_of_the_balance_loss_goes_through_the_mean_probabilities_to_the_routed_router_alone():
    params = parameters(CFG)
    grads = jax.grad(lambda p: balance(CFG, p))(params)
    reached = {name for name, grad in grads.items() if np.any(grad['kernel'] != 0)}
    assert reached == {'routed_router'}
    load = found(CFG, params)['metrics']['head_load']
    mean = lambda kernel: jnp.mean(jax.nn.softmax(X @ kernel, axis=-1), axis=(0, 1))
    expected = jax.grad(lambda kernel: 6 * jnp.sum(mean(kernel) * load))(params['routed_router']['kernel'])
    np.testing.assert_allclose(grads['routed_router']['kernel'], expected, atol=1e-6)


def test_padding_enters_neither_the_balance_loss_nor_the_load():
    params, moved = parameters(CFG), np.where(PACKED[..., None] > 0, X, 100.0).astype(np.float32)
    assert balance(CFG, params, X, PACKED) == balance(CFG, params, moved, PACKED)
    assert balance(CFG, params, X, PACKED) != balance(CFG, params)
    chosen = (gates_of(CFG, params)[..., 2:] != 0)[PACKED > 0]
    np.testing.assert_allclose(
        found(CFG, params, X, PACKED)['metrics']['head_load'], np.mean(chosen, axis=0), atol=1e-6
    )


def test_two_devices_with_half_the_rows_have_the_balance_loss_of_all_rows():
    """The rows hold 10 and 13 real tokens, so a mean of means would differ."""
    params = parameters(CFG)

    def loss(x, segments):
        context = Context(segments=segments, axis='rows')
        _, found = CFG.make().apply({'params': params}, x, context, mutable=['losses'])
        return found['losses']['load_balance']

    halves = jax.pmap(loss, axis_name='rows', devices=jax.devices()[:2])(X[:, None], PACKED[:, None])
    np.testing.assert_allclose(halves, np.full(2, balance(CFG, params, X, PACKED)), rtol=1e-6)


@pytest.mark.parametrize('gates, size', [('renormalised', 1), ('query_norm', 5)])
def test_calls_through_the_cache_of_all_heads_equal_the_whole(gates, size):
    cfg = MixtureOfHeadsConfig(width=D, heads=H, shared=2, active=3, gates=gates, key_heads=2)
    variables = {'params': parameters(cfg)}
    whole, _ = run(cfg)(variables, X, PACKED)
    assert_calls_are(whole, cfg, variables, X, PACKED, size)
    plain = SoftmaxConfig(width=D, heads=H, key_heads=2)
    assert cfg.state_bytes(100) == plain.state_bytes(100)


def test_all_heads_are_computed_so_that_routing_saves_nothing():
    assert CFG.flops(64) - SoftmaxConfig(width=D, heads=H).flops(64) == 2 * 64 * D * (2 + 6 + 2)


QUERY = MixtureOfHeadsConfig(width=D, heads=H, shared=2, active=3, gates='query_norm')


def query_gates(q):
    return QUERY.make().apply({}, q, Context(), method='_query_gates')


def queries():
    return jax.random.normal(jax.random.key(3), (2, 5, H, 4))


def test_query_norm_takes_the_queries_that_are_long_by_their_deviations():
    q = np.asarray(queries(), np.float64)
    norm = np.linalg.norm(q[:, :, 2:], axis=-1)
    np.testing.assert_allclose(
        norm_scores(queries()[:, :, 2:]), norm / np.std(norm, axis=-1, ddof=1, keepdims=True), rtol=1e-5
    )
    rank = np.argsort(np.argsort(-norm, axis=-1), axis=-1)
    expected = np.concatenate([np.ones((2, 5, 2)), rank < 3], axis=-1)
    np.testing.assert_array_equal(query_gates(queries()), expected)


def test_query_norm_is_zero_or_one_with_the_gradient_of_the_soft_score():
    weights = jax.random.normal(jax.random.key(4), (2, 5, H))
    hard = jax.grad(lambda q: jnp.sum(weights * query_gates(q)))(queries())
    soft = jax.grad(lambda q: jnp.sum(weights[..., 2:] * jax.nn.softmax(norm_scores(q[:, :, 2:]), axis=-1)))(queries())
    np.testing.assert_allclose(hard, soft, atol=1e-6)
    assert np.any(hard != 0)


def test_query_norm_ignores_a_factor_on_all_queries_of_a_token_and_stays_finite_at_zero():
    q = queries()
    np.testing.assert_allclose(norm_scores(7.0 * q), norm_scores(q), rtol=1e-5)
    np.testing.assert_array_equal(query_gates(7.0 * q), query_gates(q))
    for degenerate in (jnp.zeros_like(q), jnp.ones_like(q)):
        assert np.all(np.isfinite(jax.grad(lambda q: jnp.sum(jnp.sin(query_gates(q))))(degenerate)))


def test_a_trained_attention_goes_on_with_its_own_parameters():
    trained = SoftmaxConfig(width=D, heads=H, key_heads=4, window=6)
    params = parameters(trained)
    cfg = from_softmax(trained, shared=4, active=4)
    assert jax.tree.structure(parameters(cfg)) == jax.tree.structure(params)
    expected, _ = trained.make().apply({'params': params}, X)
    np.testing.assert_allclose(run(cfg)({'params': params}, X, None)[0], expected, atol=1e-6)
    routed = parameters(from_softmax(trained, shared=4, active=2, gates='renormalised'))
    assert {name: routed[name]['kernel'].shape for name in params} == {n: p['kernel'].shape for n, p in params.items()}
    assert set(routed) - set(params) == set(ROUTERS)


def test_gates_can_be_read_and_set():
    params = parameters(CFG)
    edits = {'gates': Edit(value=jnp.ones(()))}
    plain = {name: p for name, p in params.items() if name not in ROUTERS}
    expected, _ = SoftmaxConfig(width=D, heads=H).make().apply({'params': plain}, X)
    np.testing.assert_allclose(run(CFG)({'params': params, 'edits': edits}, X, None)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(shared=9), 'shared=9 must be between 0 and heads=8'),
        (dict(shared=-1), 'shared=-1 must be between 0 and heads=8'),
        (dict(active=7), 'active=7 of heads - shared = 6 routed heads must be between 1 and 6'),
        (dict(active=0), 'active=0 of heads - shared = 6 routed heads must be between 1 and 6'),
        (dict(shared=8, active=1), 'active=1 of heads - shared = 0 routed heads must be 0, since all heads are shared'),
        (dict(gates='soft'), "gates='soft' must be one of renormalised, paper, query_norm"),
        (dict(shared=7, active=1, gates='query_norm'), 'heads - shared = 1 must be 0 or at least 2'),
        (dict(qk_norm=True, gates='query_norm'), 'but qk_norm=True makes them alike'),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfHeadsConfig(width=D, **fields)
