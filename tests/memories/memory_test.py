"""What a memory refuses, what falls out of it at the limits, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.memories import MEMORIES
from jattn.memories.architecture import MLP, Matrix
from jattn.memories.bias import Dot, Huber
from jattn.memories.gates import Gate, Gates
from jattn.memories.learner import Learner, orthogonalise
from jattn.memories.retention import KL, Decay, Keep
from jattn.mixers import MIXERS
from jattn.ops.fast_weights import dual
from jattn.taps import Edit

LMM = dataclasses.replace(MEMORIES['titans_lmm'].tiny(), persistent=0)


def change(name, **fields):
    return functools.partial(dataclasses.replace, MEMORIES[name], **fields)


ILLEGAL = {
    'chunk=0 must be at least 1': change('titans_lmm', chunk=0),
    'tile=48 must be a power of two': change('gla', tile=48),
    'window=0 must be at least 1': lambda: Learner(window=0),
    "solver='newton' must be one of": lambda: Learner(solver='newton'),
    'orthogonal=True needs per_chunk=True': lambda: Learner(orthogonal=True),
    'forgets nothing': change('gated_deltanet', retention=Keep()),
    'needs gates.decay': change('deltanet', retention=Decay()),
    'learner.momentum=True needs gates.momentum set': change('gated_deltanet', learner=Learner(momentum=True)),
    'a loss that bends takes a gate': change('titans_lmm', bias=Huber()),
    "error='decayed' needs chunk=1": change('titans_lmm', learner=Learner(error='decayed'), gates=Gates(decay=Gate())),
    'decay per channel needs a matrix': change('memora', gates=Gates(decay=Gate(per='channel'))),
    'needs learned_start=True': change('titans_lmm', learned_start=False),
    'need chunk > 1': change('lact', chunk=1),
    'needs a matrix and the dot-product bias': change('deltanet', recipe=MEMORIES['linear_attention'].recipe),
    "path='dual' cannot run this memory: chunk=1": change('deltanet', path='dual'),
    "path='exact' cannot run this memory: the architecture is not a matrix": change('yaad', path='exact'),
    "path='chunk_blind' cannot run this memory": change('titans_lmm', path='chunk_blind'),
    "path='fast' must be auto or one of ridge, exact": change('titans_lmm', path='fast'),
    'as many key as value channels': change('titans_lmm', width=32, value_width=2.0),
    'must be a multiple of heads=3': change('deltanet', width=32, heads=3),
    "kind='tanh' must be one of": lambda: Gate(kind='tanh'),
    'erasing along keys of its own takes a step per head': lambda: dataclasses.replace(
        MEMORIES['comba'], gates=dataclasses.replace(MEMORIES['comba'].gates, step=Gate(per='channel'))
    ),
    'segment=20 must be a multiple of memory.chunk=16': lambda: dataclasses.replace(MIXERS['titans_mac'], segment=20),
    'window=0 must be at least 1, ': lambda: MIXERS['softmax'].__class__(window=0),
    'the mixer gives its own tokens': lambda: dataclasses.replace(MIXERS['titans_mag'], memory=MEMORIES['titans_lmm']),
}


@pytest.mark.parametrize('message', ILLEGAL)
def test_what_does_not_fit_is_named_with_its_rule(message):
    with pytest.raises(ValueError) as error:
        ILLEGAL[message]()
    assert message in str(error.value)


def test_a_gate_of_the_wrong_kind_is_named():
    cfg = dataclasses.replace(MEMORIES['gated_deltanet'].tiny(), gates=Gates(decay=Gate(kind='softplus')))
    with pytest.raises(ValueError, match=r"gate.kind='softplus' has no log"):
        cfg.make().init(jax.random.key(0), jnp.zeros((1, 4, 32)))


def test_states_of_others_are_named():
    mixer, x = LMM.make(), jnp.zeros((2, 4, 32))
    variables = mixer.init(jax.random.key(0), x)
    other = MEMORIES['deltanet'].tiny().init_state(2, 8)
    with pytest.raises(ValueError, match='the state is not of this memory'):
        mixer.apply(variables, x, Context(), other)
    wide = dataclasses.replace(LMM, width=64).init_state(2, 8)
    with pytest.raises(ValueError, match=r'has shape \(2, 4, 64, 16\), but this memory and batch need \(2, 4, 32, 8\)'):
        mixer.apply(variables, x, Context(), wide)


def test_the_error_compares_the_config_with_the_input_width():
    with pytest.raises(ValueError, match='the input has width 16, but width=32'):
        LMM.make().init(jax.random.key(0), jnp.zeros((1, 4, 16)))


def captured(cfg, sites, x=None, edits=None):
    x = jax.random.normal(jax.random.key(2), (2, 12, 32)) if x is None else x
    variables = jax.jit(cfg.make().init)(jax.random.key(0), x)
    (y, _), taps = jax.jit(functools.partial(cfg.make().apply, mutable=['taps']))(variables | {'edits': edits or {}}, x)
    return y, [taps['taps'][site] for site in sites], variables['params']


def test_surprise_is_the_norm_of_the_gradient_that_moves_the_memory():
    cfg = dataclasses.replace(MEMORIES['deltanet'].tiny())
    _, (k, v, step, surprise, size, norm), _ = captured(cfg, ('k', 'v', 'step', 'surprise', 'write_size', 'state_norm'))
    state = np.zeros((2, 4, 8, 8))
    for t in range(12):
        np.testing.assert_allclose(norm[:, t], np.linalg.norm(state, axis=(-2, -1)), rtol=1e-4, atol=1e-5)
        error = v[:, t] - np.einsum('bhkv,bhk->bhv', state, k[:, t])
        gradient = -k[:, t][..., None] * error[..., None, :]
        np.testing.assert_allclose(surprise[:, t], np.linalg.norm(gradient, axis=(-2, -1)), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(size[:, t], step[:, t] * surprise[:, t], rtol=1e-4, atol=1e-6)
        state = state - np.asarray(step[:, t])[..., None, None] * gradient


def test_a_memory_that_never_steps_reads_its_fading_start():
    silent = {'step': Edit(scale=jnp.zeros(()))}
    fading = dataclasses.replace(LMM, retention=Decay())
    _, (log_decay, before), params = captured(fading, ('log_decay', 'state_0'), edits=silent)
    kept = np.exp(np.sum(log_decay, axis=1))
    np.testing.assert_allclose(before, kept[..., None, None] * np.asarray(params['memory_0'].value)[None], rtol=1e-5)


def test_delta_is_never_felt_when_it_is_infinite():
    huber = dataclasses.replace(MEMORIES['yaad'].tiny(), gates=MEMORIES['yaad'].gates)
    l2 = dataclasses.replace(
        huber, bias=MEMORIES['deltanet'].bias, gates=dataclasses.replace(huber.gates, threshold=None)
    )
    x = jax.random.normal(jax.random.key(1), (2, 12, 32))
    params = jax.jit(huber.make().init)(jax.random.key(0), x)['params']
    params = nn.unbox(params)
    params['read']['threshold_gate']['bias'] = jnp.full(4, 1e3)
    y, _ = jax.jit(huber.make().apply)({'params': params}, x)
    own = {name: value for name, value in params['read'].items() if name != 'threshold_gate'}
    expected, _ = jax.jit(l2.make().apply)({'params': params | {'read': own}}, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_zero_deep_memories_are_saddles():
    """Why a deep memory needs a learned start: at zero both layers' gradients are zero."""
    weights = (jnp.zeros((8, 4)), jnp.zeros((4, 8)))
    net = MLP(post='none')
    inner = dual.inner_gradients(
        lambda product, x: net.forward(product, x, {}), lambda p: p - 1.0, weights, jnp.ones((3, 4))
    )
    assert all(not np.any(g) for g in inner.total(jnp.ones(3)))


def test_orthogonalised_steps_have_singular_values_near_one_and_zero_stays_zero():
    x = jax.random.normal(jax.random.key(0), (12, 8))
    for matrix in (x, x.T):
        values = np.linalg.svd(np.asarray(orthogonalise(matrix)), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
    assert not np.any(orthogonalise(jnp.zeros((4, 3))))
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(orthogonalise(x)))(jnp.zeros((4, 3)))))


@pytest.mark.parametrize('name', ['titans_lmm', 'gated_deltanet'])
def test_backward_temporaries_grow_with_the_number_of_chunks(name):
    """No token has weights of its own: doubling the length adds the inputs and one state a chunk."""
    cfg = dataclasses.replace(MEMORIES[name], width=64, chunk=16 if name == 'titans_lmm' else 1, tile=16, persistent=0)
    mixer = cfg.make()
    sizes = []
    for tokens in (256, 512):
        x = jnp.zeros((1, tokens, 64))
        params = jax.eval_shape(mixer.init, jax.random.key(0), x)
        run = jax.jit(jax.grad(lambda p, x: jnp.sum(mixer.apply(p, x)[0] ** 2)))
        sizes.append(run.lower(params, x).compile().memory_analysis().temp_size_in_bytes)
    added = (sizes[1] - sizes[0]) / 256
    state = 4 * cfg.heads * sum(np.prod(s) for s in cfg.architecture.shapes(cfg.keys, cfg.values))
    per_token = 40 * 4 * 64 * 4  # a few dozen arrays of the layer's width
    assert added < per_token + 4 * state / 16, f'{added:.0f} bytes a token'
    if name == 'titans_lmm':
        assert added < state, 'weights for every token'


def test_every_row_of_the_members_table_says_what_runs():
    paths = {name: cfg.running_path for name, cfg in MEMORIES.items()}
    assert paths['mesa'] == 'ridge' and paths['lact'] == paths['atlas'] == 'chunk_blind'
    assert {n for n, p in paths.items() if p == 'diagonal_plus_low_rank'} == {
        'gla', 'hgrn2', 'kimi_delta', 'comba', 'rwkv7'
    }  # fmt: skip
    assert 'generic' not in paths.values()


def test_dot_products_do_not_care_where_the_gradient_is_taken():
    online = dataclasses.replace(MEMORIES['retnet'].tiny(), bias=Dot(), architecture=Matrix())
    chunked = dataclasses.replace(online, chunk=4)
    assert chunked.running_path == 'dual'
    x = jax.random.normal(jax.random.key(1), (2, 13, 32))
    variables = jax.jit(online.make().init)(jax.random.key(0), x)
    y, _ = online.make().apply(variables, x)
    np.testing.assert_allclose(chunked.make().apply(variables, x)[0], y, atol=1e-5)


def test_kl_weights_are_positive_and_sum_to_their_total():
    logits = (jax.random.normal(jax.random.key(0), (5, 4)),)
    (weights,) = KL().weights(logits, logits, {'log_total_0': jnp.log(3.0)})
    assert np.all(weights > 0)
    np.testing.assert_allclose(weights.sum(axis=-1), 3.0, rtol=1e-6)


def test_a_normaliser_has_no_channel_in_the_convolution():
    cfg = MEMORIES['linear_attention'].tiny()
    cfg = dataclasses.replace(cfg, recipe=dataclasses.replace(cfg.recipe, convolution=4))
    mixer, x = cfg.make(), jax.random.normal(jax.random.key(0), (2, 9, cfg.width))
    params = jax.jit(mixer.init)(jax.random.key(1), x)
    whole, _ = jax.jit(mixer.apply)(params, x)
    state, parts = cfg.init_state(2, 9, jnp.float32), []
    for start, end in ((0, 4), (4, 9)):
        y, state = mixer.apply(params, x[:, start:end], Context(), state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
