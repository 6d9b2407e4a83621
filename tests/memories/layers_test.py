"""Members are the layers of their papers, in float64; their gates, widths and starts are those published."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context, Rows
from jattn.memories import MEMORIES
from jattn.memories.gates import GATES, GateModule
from jattn.memories.members import with_lower_bounds
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import matrix_axes
from tests.memories.drawn import assert_near
from tests.memories.published import LAYERS, B, D, K, T, apply, gate, inputs, parameters, projected, sigmoid, softplus


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize('name', LAYERS)
def test_a_member_is_the_layer_of_its_paper(name):
    cfg = MEMORIES[name].tiny()
    p = parameters(cfg)
    z = LAYERS[name](p, inputs())
    assert_near(apply(cfg, p, inputs()), projected(p, z))


# --- gates, sizes and states


LOGS = {name: GATES[name] for name in ('keep', 'momentum', 'time_step', 'gla', 'kimi', 'rwkv7', 'hgrn2')}
LOGS['hgrn2, lower'] = dataclasses.replace(GATES['hgrn2'], lower=0.25)


@pytest.mark.parametrize('name', LOGS)
def test_log_decays_are_float32_and_finite_whatever_the_logit(name):
    module, x = GateModule(LOGS[name], 5, 1), jnp.zeros((1, 1, D), jnp.bfloat16)
    shapes = nn.unbox(jax.eval_shape(functools.partial(module.init, as_log=True), jax.random.key(0), x))['params']
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    bias = jnp.array([-300, -100, 0, 100, 300], jnp.float32).reshape(-1, *[1] * (shapes['bias'].ndim - 1))

    def total(bias):
        log_decay = module.apply({'params': params | {'bias': bias}}, x, as_log=True)
        return jnp.sum(log_decay), log_decay

    slope, log_decay = jax.grad(total, has_aux=True)(bias)
    assert log_decay.dtype == slope.dtype == jnp.float32
    assert np.all(np.isfinite(log_decay)) and np.all(np.isfinite(slope)) and np.all(log_decay <= 0)


def made(gate, heads=4000):
    """A gate's parameters at the start."""
    init = jax.jit(functools.partial(GateModule(gate, heads, 1).init, as_log=True))
    return nn.unbox(init(jax.random.key(0), jnp.zeros((1, 1, 2), jnp.float32)))['params']


@pytest.mark.parametrize(
    ('names', 'low', 'high'),
    [(('mamba2', 'kimi_delta'), 1, 16), (('gated_deltanet', 'comba', 'delta_product'), 0, 16)],
)
def test_decay_rates_start_uniform_and_time_steps_log_uniform(names, low, high):
    gates = {MEMORIES[name].gates.decay for name in names}
    assert {gate.decay_range for gate in gates} == {(low, high)}
    params = made(gates.pop())
    rates, log_dt = np.exp(np.ravel(params['decay_rate'])), np.log(softplus(np.ravel(params['bias'])))
    for found, start, end in ((rates, low, high), (log_dt, np.log(1e-3), np.log(0.1))):
        quantiles = (np.quantile(found, [0, 0.25, 0.5, 0.75, 1]) - start) / (end - start)
        np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.03)


def names_of(cfg):
    """path -> the logical names of a parameter's axes."""
    boxed = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.zeros((1, 4, cfg.width), jnp.float32))['params']
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def test_decay_rates_and_time_steps_never_decay_themselves():
    for name in ('mamba2', 'kimi_delta', 'gated_deltanet'):
        leaves = names_of(MEMORIES[name].tiny())
        decaying = {path for path, leaf in leaves.items() if matrix_axes(leaf.names)}
        assert not decaying & {'read.decay_gate.decay_rate', 'read.decay_gate.bias', 'write.skip'}
        assert {'read.q_proj.kernel', 'o_proj.kernel'} < decaying


WIDTHS = {'retnet': (1, 2), 'gla': (0.5, 1), 'deltanet': (1, 1), 'gated_deltanet': (0.75, 1.5), 'kimi_delta': (1, 1)}


@pytest.mark.parametrize('name', WIDTHS)
def test_keys_and_values_are_as_wide_as_published(name):
    cfg = dataclasses.replace(MEMORIES[name], width=1024)
    assert (cfg.keys * cfg.heads / 1024, cfg.head_values * cfg.heads / 1024) == WIDTHS[name]


def test_mamba2_has_a_state_of_64_shared_by_its_heads_and_convolves_all_three_together():
    cfg = dataclasses.replace(MEMORIES['mamba2'], width=128)
    assert (cfg.keys, cfg.recipe.key_groups, cfg.heads * cfg.head_values) == (64, 1, 256)
    assert names_of(cfg)['read.conv.kernel'].value.shape == (4, 2 * 64 + 256)


def test_gated_deltanet_has_six_squared_widths_of_parameters():
    cfg = dataclasses.replace(MEMORIES['gated_deltanet'], width=1024, heads=3)
    assert (cfg.keys, cfg.head_values) == (256, 512)
    count = sum(leaf.value.size for leaf in names_of(cfg).values())
    assert count / 1024**2 == pytest.approx(6, rel=0.01)


def test_ttt_starts_small_with_chunks_of_16_and_its_steps_are_shared_out_by_place():
    for name, base in (('ttt_linear', 1.0), ('ttt_mlp', 0.1)):
        cfg = dataclasses.replace(MEMORIES[name], width=128)
        assert (cfg.chunk, GateModule(cfg.gates.step, 4, 1, keys=cfg.keys).limit) == (16, base / 32)
        weights = cfg.architecture.init(jax.random.key(0), cfg.architecture.shapes(32, 32), 4)
        assert all(np.std(w[..., :-1]) == pytest.approx(0.02, rel=0.1) and not np.any(w[..., -1]) for w in weights)
    assert [shape[0] for shape in MEMORIES['ttt_mlp'].architecture.shapes(32, 32)] == [128, 32]


def test_states_hold_the_last_three_inputs_of_each_convolution_or_the_last_token():
    tails = {'deltanet': (3, 3 * D), 'mamba2': (3, 2 * K + 2 * D), 'mesa': (3, 2 * D), 'ttt_linear': (3, 2 * D)}
    for name, shape in (tails | {'rwkv7': (1, D)}).items():
        assert MEMORIES[name].tiny().init_state(1, 8).tails.shape == (1, *shape)
    for name in ('linear_attention', 'retnet', 'gla'):
        assert MEMORIES[name].tiny().init_state(1, 8).tails is None


def test_memories_that_correct_themselves_have_keys_of_length_one():
    """Or a triangular system without bound; TTT and RWKV-7 bound theirs otherwise, Longhorn needs none."""
    correcting = [cfg for cfg in MEMORIES.values() if cfg.chunk == 1 and (cfg.bias.erases or not cfg.bias.is_constant)]
    recipes = [cfg.recipe for cfg in correcting if cfg != MEMORIES['rwkv7']]
    assert len(recipes) >= 8 and all(recipe.qk_norm for recipe in recipes)


def test_the_sums_of_mesa_are_float32_under_bfloat16():
    cfg = MEMORIES['mesa'].tiny()
    x = jnp.zeros((1, 4, D), jnp.bfloat16)
    cursor = cfg.init_state(1, 8)
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), x)
    y, after = jax.eval_shape(cfg.make().apply, params, x, Context(), cursor)
    assert y.dtype == jnp.bfloat16
    assert after.memory.gram.dtype == after.memory.memory.dtype == jnp.float32


# --- HGRN2's lower bounds


def test_lower_bounds_are_those_of_a_softmax_over_layers_at_its_start():
    mixers = with_lower_bounds(MEMORIES['hgrn2'], 5)
    share = np.exp(np.zeros(5)) / 5
    np.testing.assert_allclose([cfg.gates.decay.lower for cfg in mixers], np.cumsum(share) - share[0], atol=1e-15)
    cfg = DecoderConfig(width=D, layers=5, mixer=mixers, read_in='tokens', input_size=8, output_size=8)
    assert [mixer.gates.decay.lower for mixer in cfg.mixers()] == [0, 0.2, 0.4, 0.6, 0.8]
    assert dataclasses.replace(mixers[3], gates=mixers[0].gates) == mixers[0] == MEMORIES['hgrn2']


@pytest.mark.parametrize('lower', [0.0, 0.6])
def test_hgrn2_keeps_at_least_its_lower_bound_and_writes_what_it_forgets(lower):
    cfg = with_lower_bounds(MEMORIES['hgrn2'].tiny(), 5)[round(5 * lower)]
    p = parameters(cfg)
    read_in = cfg.recipe.read_in(cfg)
    tokens, _ = read_in.apply({'params': p['read']}, inputs(), Rows(), Context(), None, jnp.zeros((B, T), jnp.int32))
    f = lower + (1 - lower) * sigmoid(gate(p['read'], 'decay', inputs()))
    assert np.min(f) >= lower
    assert_near(tokens.log_decay, np.log(f))
    assert_near(tokens.k, 1 - f)
