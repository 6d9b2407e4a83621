"""The decoder: scanned and unrolled are one model, states stream, depth costs no compile time, options hold."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.flops import count_flops
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from tests.marks import slow_where

HYBRID = tuple(MIXERS[name].tiny() for name in ('softmax', 'rwkv7', 'rg_lru'))


def make(**changes):
    fields = dict(width=32, layers=4, mixer=HYBRID, read_in='tokens', input_size=16, output_size=16) | changes
    return DecoderConfig(**fields)


def params_of(cfg, seed=0):
    return nn.unbox(jax.jit(cfg.make().init)(jax.random.key(seed), example(cfg)))['params']


def example(cfg, batch=2, tokens=12, seed=1):
    if cfg.read_in == 'linear':
        return jax.random.normal(jax.random.key(seed), (batch, tokens, cfg.input_size))
    return jax.random.randint(jax.random.key(seed), (batch, tokens), 0, cfg.input_size)


def by_layer(cfg, params):
    return [jax.tree.map(lambda x, n=n: x[n], params[group][slot]) for (group, slot), n in cfg.layer_sites()]


@pytest.mark.parametrize('layers', [1, 3, 4, 6])
def test_the_pattern_is_tiled_over_the_depth(layers):
    for scan in (True, False):
        cfg = make(layers=layers, scan=scan)
        assert [type(m) for m in cfg.mixers()] == [type(HYBRID[i % 3]) for i in range(layers)]
        assert len(cfg.layer_sites()) == len(set(cfg.layer_sites())) == layers


def test_scanned_and_unrolled_give_the_same_outputs():
    scanned, flat = make(layers=7), make(layers=7, scan=False)
    params = params_of(scanned)
    moved = params_of(flat)
    for layer, ((group, slot), _) in enumerate(flat.layer_sites()):
        moved[group][slot] = jax.tree.map(lambda x: x[None], by_layer(scanned, params)[layer])
    for name in ('embedding', 'final_norm', 'read_out'):
        moved[name] = params[name]
    a, _ = jax.jit(scanned.make().apply)({'params': params}, example(scanned))
    b, _ = jax.jit(flat.make().apply)({'params': moved}, example(flat))
    np.testing.assert_allclose(a, b, atol=2e-5)


OPTIONS = {
    'learned_positions': dict(max_positions=16),
    'linear_read_in': dict(read_in='linear', input_size=3, output_size=2),
    'tied': dict(tied=True),
    'hidden_ends': dict(read_in='linear', input_size=3, output_size=2, ends_hidden=24),
    'no_feed_forward': dict(feed_forward=None),
    'layer_norm': dict(norm='layer'),
    'no_remat': dict(remat='none'),
}


# A cut cannot matter to what is done with every token alone.
OF_EVERY_TOKEN_ALONE = {'linear_read_in', 'tied', 'hidden_ends', 'no_feed_forward', 'layer_norm', 'no_remat'}


@pytest.mark.parametrize('name', slow_where(OF_EVERY_TOKEN_ALONE.__contains__, OPTIONS))
def test_any_split_into_calls_gives_the_same_outputs(name):
    cfg = make(**OPTIONS[name])
    params, inputs = params_of(cfg), example(cfg)
    apply = jax.jit(cfg.make().apply)
    whole, none = apply({'params': params}, inputs, Context(), None)
    assert none is None and whole.shape == (2, 12, cfg.output_size)
    state, parts = cfg.init_state(2, 12), []
    for start, end in itertools.pairwise([0, 5, 6, 12]):
        y, state = apply({'params': params}, inputs[:, start:end], Context(), state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-4)


@pytest.mark.parametrize('name', OPTIONS)
def test_flops_are_those_of_the_forward_pass(name):
    cfg = make(**OPTIONS[name])
    params, inputs = params_of(cfg), example(cfg, 1, 16)
    counted = count_flops(lambda x: cfg.make().apply({'params': params}, x, mutable=['patterns']), inputs)
    assert abs(cfg.flops(16) / counted - 1) < 0.05


def test_remat_changes_no_gradient():
    cfg = make(layers=3)
    params, tokens = params_of(cfg), example(cfg)

    def gradient(cfg):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(cfg.make().apply({'params': p}, tokens)[0]))))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.max(np.abs(b)))),
        gradient(cfg),
        gradient(dataclasses.replace(cfg, remat='none')),
    )


def test_bfloat16_activations_with_float32_parameters():
    cfg = make(dtype='bfloat16')
    params = params_of(cfg)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
    y, _ = jax.jit(cfg.make().apply)({'params': params}, example(cfg))
    assert y.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(y)))


def test_positions_past_the_table_are_nan_and_a_long_call_is_named():
    cfg = make(max_positions=8)
    params = params_of(make(max_positions=16))
    params['positions'] = params['positions'][:8]
    with pytest.raises(ValueError, match='a call of 12 tokens does not fit in max_positions=8'):
        cfg.make().apply({'params': params}, example(cfg))
    y, _ = cfg.make().apply({'params': params}, example(cfg), Context(segments=jnp.ones((2, 12), jnp.int32)))
    assert bool(jnp.all(jnp.isnan(y[:, 8:])))


def test_compile_time_does_not_grow_with_the_depth():
    """The traced program of 24 layers is as large as that of 4 (seconds are not for tests)."""

    def program(layers):
        cfg = make(layers=layers, mixer=(SoftmaxConfig(heads=4),))
        shapes = jax.eval_shape(lambda k: nn.unbox(cfg.make().init(k, example(cfg)))['params'], jax.random.key(0))
        gradient = jax.grad(lambda p, x: jnp.sum(cfg.make().apply({'params': p}, x)[0]))
        return jax.jit(gradient).lower(shapes, example(cfg)).as_text().count('\n')

    assert program(24) <= 1.05 * program(4)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(norm='batch'), "norm='batch' must be one of rms, layer"),
        (dict(remat='all'), "remat='all' must be one of none, block"),
        (dict(mixer=()), 'mixer='),
        (dict(layers=0), 'layers=0'),
        (dict(width=30), 'width=30 must be a multiple of heads=4'),
        (dict(read_in='linear', tied=True), 'tied=True needs an embedding'),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_every_layer_state_is_counted_from_the_config_alone():
    cfg = make(layers=7)
    state = jax.eval_shape(lambda: cfg.init_state(1, 10))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert total == sum(mixer.state_bytes(10, jnp.float32) for mixer in cfg.mixers())


def test_later_layers_mix_in_the_values_of_the_first_layer_that_shares_them():
    cfg = make(mixer=(SoftmaxConfig(), MIXERS['rwkv7'].tiny()), scan=False, max_positions=None)
    params, tokens = params_of(cfg), example(cfg)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: jnp.sum(cfg.make().apply({'params': params}, tokens)[0] ** 2))(params)

    blocks = gradient(params)['body']
    shares = [blocks[f'block_{n}']['mixer']['read']['v_up_proj']['kernel'] for n in (1, 3)]
    assert [bool(np.any(share != 0)) for share in shares] == [False, True]  # the first one's are mixed with themselves
