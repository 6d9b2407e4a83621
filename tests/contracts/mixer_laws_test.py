"""Every law of the mixer contract (jattn/contract.py) for every entry of MIXERS, and for variants of its options.

Parameters are those of init plus 0.02 normal, so that published zero initialisations are no excuse. Documents are laid
out at multiples of `document_align`, as the packer does. Almost all of the time is compilation: calls have segments,
those with a state 1, 5 or 16 tokens, and the one in bfloat16 has an edit, so that an entry compiles each once, and its
tests stay with one worker. What is cut and joined around a call is numpy, which compiles nothing.
"""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.flops import count_flops
from jattn.memories import MEMORIES
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.mixers.aaren import AarenConfig
from jattn.mixers.density_adaptive import DensityAdaptiveConfig
from jattn.mixers.extractor import ExtractorConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.mixers.mamba import MambaConfig
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig
from jattn.mixers.normalized_attention import NormalizedAttentionConfig
from jattn.mixers.qlstm import QLSTMConfig
from jattn.mixers.routing import RoutingConfig
from jattn.mixers.s4d import S4DConfig
from jattn.mixers.scattered_linear import ScatteredLinearConfig
from jattn.nn.landmark_cache import LandmarkCache
from jattn.nn.longheads_cache import LongHeadsCache
from jattn.taps import Edit
from tests.parameters import perturbed

VARIANTS = {
    'softmax[window,sinks]': SoftmaxConfig(window=4, sinks=2),
    'softmax[grouped,qk_norm,softcap]': SoftmaxConfig(key_heads=2, qk_norm=True, softcap=5.0, rotary_base=None),
    'softmax[convolution,grouped]': SoftmaxConfig(convolution=3, key_heads=2),
    'softmax[multi_query,head_dim]': SoftmaxConfig(key_heads=1, head_dim=16),
    'aaren[scan,fold_query]': AarenConfig(chunk=None, fold_query=True),
    'mamba[alone]': MambaConfig(alone=True),
    'qlstm[reversed]': QLSTMConfig(forget='reversed'),
    'normalized_attention[softplus]': NormalizedAttentionConfig(normaliser='softplus', use_bias=False),
    'mixture_of_heads[query_norm,grouped,window]': MixtureOfHeadsConfig(gates='query_norm', key_heads=4, window=4),
    'routing[options]': RoutingConfig(local_heads=0, mask_self=True, scale=0.3, relative=False),
    'routing[top]': RoutingConfig(selection='top'),
    'extractor_she[absolute,out_proj]': ExtractorConfig(indexing='absolute', out_proj=True, use_bias=True),
    'landmark[retrieval]': LandmarkConfig(key_heads=2, cache=LandmarkCache(block=16, retrieved=2)),
    'softmax[longheads]': SoftmaxConfig(key_heads=2, cache=LongHeadsCache(chunk=2, chunks=4)),
    'softmax[landmark_cache]': SoftmaxConfig(cache=LandmarkCache(block=2, retrieved=2, chunk=3)),
    'scattered_linear[cross_window]': ScatteredLinearConfig(cross_window=True, grid=(2, 8, 8), window=4),
    's4d[gaps,glu]': S4DConfig(use_gaps=True, glu=True),
    'density_adaptive[causal features]': DensityAdaptiveConfig(axis='features', causal=True, heads=3),
    'density_adaptive[causal time]': DensityAdaptiveConfig(causal=True, heads=1, rescale=True),
}
ENTRIES = {name: cfg.tiny() for name, cfg in (MIXERS | VARIANTS).items()}
CAUSAL = [name for name, cfg in ENTRIES.items() if cfg.causal]
BATCH, TOKENS = 2, 16
TOLERANCE = 5e-4  # memories that learn amplify rounding (Moneta most); tests/memories/paths_test.py has float64


def over(names, slow=frozenset(VARIANTS)):
    """One parameter an entry; those that are slow run in make test-all."""

    def marks(name):
        return [pytest.mark.xdist_group(name), *([pytest.mark.slow] if name in slow else [])]

    return pytest.mark.parametrize('name', [pytest.param(name, marks=marks(name)) for name in names])


entries, causal_entries = over(ENTRIES), over(CAUSAL)
# Memories are one module, and so are extractors: in the laws that trace or compile it once more, some stand for all.
STANDING = {'linear_attention', 'gated_deltanet', 'rwkv7', 'mesa', 'moneta'}
OF_ANOTHER = {*MEMORIES, 'titans_mag', 'titans_mal', 'extractor_he', 'extractor_we', 'extractor_me'} - STANDING
some_entries, some_causal_entries = (over(names, {*VARIANTS, *OF_ANOTHER}) for names in (ENTRIES, CAUSAL))


@functools.cache
def boxed_variables(name):
    """Those of init, with the logical names of their axes."""
    cfg = ENTRIES[name]
    return jax.jit(cfg.make().init)(jax.random.key(0), inputs(), full_context(cfg))


@functools.cache
def variables_of(name):
    return perturbed(boxed_variables(name), 0.02, seed=1)


@functools.cache
def gradients(name):
    """The compiled pull-back `(x, weights of the outputs) -> gradients of (params, x)`."""
    mixer, variables, context = ENTRIES[name].make(), dict(variables_of(name)), full_context(ENTRIES[name])
    params = variables.pop('params')

    @jax.jit
    def pull(x, weights):
        def total(params, x):
            return jnp.sum(weights * jnp.sin(mixer.apply({'params': params, **variables}, x, context)[0]))

        return jax.grad(total, argnums=(0, 1))(params, x)

    return pull


@functools.cache
def run(name):
    """The compiled call `(x, context, state) -> (y, state)`."""
    mixer, variables = ENTRIES[name].make(), variables_of(name)
    return jax.jit(lambda x, context, state: mixer.apply(variables, x, context, state))


@functools.cache
def run_in_bfloat16(name):
    """The compiled call `(scale of the heads' outputs) -> (y, state)` in bfloat16."""
    cfg, variables, context = ENTRIES[name], variables_of(name), full_context(ENTRIES[name])

    @jax.jit
    def call(scale):
        edited = variables | {'edits': {'z': Edit(scale=scale)}}
        return cfg.make().apply(edited, inputs().astype(jnp.bfloat16), context)

    return call


def inputs(batch=BATCH, tokens=TOKENS, seed=2):
    return np.random.default_rng(seed).normal(size=(batch, tokens, 32)).astype(np.float32)


def full_context(cfg, batch=BATCH, tokens=TOKENS):
    return cfg.example_context(jax.random.key(3), batch, tokens)


def one_document(x):
    return Context(segments=np.ones(x.shape[:2], np.int32))


def explicit_context(name):
    """The full context with segments, whether the mixer's example has them or not."""
    context = full_context(ENTRIES[name])
    return context if context.segments is not None else context.replace(segments=one_document(inputs()).segments)


def fresh(name, batch=BATCH, capacity=2 * TOKENS):
    return ENTRIES[name].init_state(batch, capacity, jnp.float32)


def segments_of(*rows):
    return Context(segments=np.array(rows, np.int32))


def assert_close(a, b):
    scale = np.max(np.abs(b))
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


def call(name, x, context=None, state=None):
    """Outputs and state; without a context the tokens are one document."""
    y, state = run(name)(x, context or one_document(x), state)
    return np.asarray(y), state


def in_calls(name, x, segments, cuts, capacity=2 * TOKENS):
    """The outputs when the rows are cut at `cuts` and handed on through the state."""
    state, outputs = fresh(name, len(x), capacity), []
    segments = one_document(x).segments if segments is None else segments
    for start, end in itertools.pairwise([0, *cuts, x.shape[1]]):
        y, state = call(name, x[:, start:end], Context(segments=segments[:, start:end]), state)
        outputs.append(y)
    return np.concatenate(outputs, axis=1), state


def alone(name, x, row, start, end):
    """The outputs of a row's tokens as a document of their own; what follows them has no say."""
    return call(name, np.broadcast_to(np.roll(x[row], -start, axis=0), x.shape))[0][0, : end - start]


@entries
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_output_has_the_shape_and_dtype_of_the_input_and_is_finite(name, dtype):
    if dtype == jnp.bfloat16:
        y, state = run_in_bfloat16(name)(jnp.ones(()))
    else:
        y, state = run(name)(inputs(), explicit_context(name), None)
    assert state is None
    chex.assert_shape(y, (BATCH, TOKENS, 32))
    chex.assert_type(y, dtype)
    chex.assert_tree_all_finite(y)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables_of(name)['params']))


@causal_entries
def test_gradient_to_future_tokens_is_exactly_zero(name):
    for t in (0, 6, TOKENS - 2):
        at_t = np.broadcast_to(np.arange(TOKENS)[:, None] == t, (BATCH, TOKENS, 32)).astype(np.float32)
        grad = np.asarray(gradients(name)(inputs(), at_t)[1])
        assert np.all(grad[:, t + 1 :] == 0)
        assert np.all(np.any(grad[:, t] != 0, axis=-1))


@causal_entries
@pytest.mark.parametrize('cuts', [[*range(1, 16)], [5, 10, 15], [1, 6, 11]], ids=['steps', 'odd', 'mixed'])
def test_any_split_into_calls_gives_the_same_outputs(name, cuts):
    whole, _ = call(name, inputs())
    split, _ = in_calls(name, inputs(), None, cuts)
    assert_close(split, whole)


@causal_entries
def test_state_keeps_its_structure_and_dtypes(name):
    state = fresh(name)
    _, after = call(name, inputs()[:, :5], state=state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@some_causal_entries
def test_explicit_positions_and_segments_equal_the_implicit_ones(name):
    whole, _ = call(name, inputs(), Context())
    positions = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (BATCH, TOKENS))
    explicit = Context(positions=positions, segments=np.full((BATCH, TOKENS), 7, np.int32))
    assert_close(call(name, inputs(), explicit)[0], whole)
    _, state = in_calls(name, inputs()[:, :11], None, [5, 10])
    rest = Context(positions=positions[:, 11:], segments=np.ones((BATCH, TOKENS - 11), np.int32))
    assert_close(call(name, inputs()[:, 11:], rest, state)[0], whole[:, 11:])


@causal_entries
@pytest.mark.parametrize('cuts', [None, [], [*range(5, 12)], [1, 6, 11]], ids=['whole', 'state', 'border', 'inside'])
def test_packed_documents_equal_separate_ones(name, cuts):
    # Two documents a row, of other lengths in each row; borders fall between, inside and at the edges of calls.
    segments = segments_of([3] * 8 + [5] * 8, [2] * 3 + [0] * 5 + [9] * 7 + [0]).segments
    x = inputs()
    if cuts is None:
        packed, _ = call(name, x, Context(segments=segments))
    else:
        packed, _ = in_calls(name, x, segments, cuts)
    for row, start, end in ((0, 0, 8), (0, 8, 16), (1, 0, 3), (1, 8, 15)):
        assert_close(packed[row, start:end], alone(name, x, row, start, end))


@causal_entries
@pytest.mark.parametrize('stateful', [False, True], ids=['whole', 'state'])
def test_padding_before_and_after_changes_nothing(name, stateful):
    x, length = inputs(), 7
    align = ENTRIES[name].document_align
    start = align if align > 1 else 3
    segments = np.zeros((BATCH, TOKENS), np.int32)
    segments[:, start : start + length] = 1
    y, _ = call(name, x, Context(segments=segments), fresh(name) if stateful else None)
    for row in range(BATCH):
        assert_close(y[row, start : start + length], alone(name, x, row, start, start + length))


@causal_entries
def test_padding_is_the_identity_of_the_state(name):
    x = inputs()
    _, before = in_calls(name, x[:, :5], None, [])
    _, after = call(name, x[:, 5:10], segments_of([0] * 5, [0] * 5), before)
    chex.assert_trees_all_close(after, before, rtol=0, atol=1e-6)


@causal_entries
def test_rows_may_stand_at_different_positions(name):
    x = inputs()
    whole, _ = call(name, x)
    _, state = in_calls(name, x[:, :11], segments_of([1] * 11, [1] * 5 + [0] * 6).segments, [5, 10])
    y, _ = call(name, np.stack([x[0, 11:], x[1, 5:10]]), state=state)
    assert_close(y, np.stack([whole[0, 11:], whole[1, 5:10]]))


@causal_entries
def test_a_new_document_clears_the_state(name):
    x = inputs()
    _, state = in_calls(name, x[:, :11], segments_of([1] * 11, [4] * 11).segments, [5, 10])
    y, _ = call(name, x[:, 11:], segments_of([2] * 5, [6] * 5), state)
    for row in range(BATCH):
        assert_close(y[row], alone(name, x, row, 11, 16))


@some_causal_entries
def test_a_document_longer_than_two_windows_streams_at_the_declared_size(name):
    x = np.concatenate([inputs(), inputs(seed=5)], axis=1)
    whole, _ = call(name, x)
    split, _ = in_calls(name, x, None, [16, 17, 22, 27], capacity=x.shape[1])
    assert_close(split, whole)


@entries
def test_every_parameter_gets_a_finite_gradient(name):
    grads, _ = gradients(name)(inputs(), inputs(seed=4))
    chex.assert_tree_all_finite(grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.max(np.abs(grad)) > 0, f'no gradient reaches {jax.tree_util.keystr(path)}'


@entries
def test_every_parameter_has_logical_names(name):
    boxed = jax.tree.leaves(boxed_variables(name), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxed:
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == box.value.ndim


@entries
def test_evaluation_changes_no_collection(name):
    cfg, variables = ENTRIES[name], variables_of(name)
    apply = functools.partial(cfg.make().apply, mutable=['mixer_state', 'batch_stats'])
    _, written = jax.eval_shape(apply, variables, inputs(), full_context(cfg))
    if not written and variables.keys() == {'params'}:
        return  # there is no collection that could change
    _, updated = jax.jit(apply)(variables, inputs(), full_context(cfg))
    for collection, values in updated.items():
        chex.assert_trees_all_equal(values, variables[collection])


@some_entries
def test_jit_equals_no_jit_and_traces_once(name):
    context = explicit_context(name)
    y, _ = run(name)(inputs(), context, None)
    traces = run(name)._cache_size()
    run(name)(inputs(seed=6), context, None)
    assert run(name)._cache_size() == traces
    plain, _ = ENTRIES[name].make().apply(variables_of(name), inputs(), context)
    assert_close(y, plain)


@causal_entries
def test_state_bytes_are_those_of_the_state(name):
    state = ENTRIES[name].init_state(1, 24, jnp.bfloat16)
    assert ENTRIES[name].state_bytes(24) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@entries
@pytest.mark.parametrize('tokens', [16, 40])
def test_flops_are_those_of_the_forward_pass(name, tokens):
    cfg, variables = ENTRIES[name], variables_of(name)  # made here: what is made in the trace would be counted
    context = full_context(cfg, 1, tokens)

    def forward(x):
        return cfg.make().apply(variables, x, context, mutable=['patterns'])

    counted = count_flops(forward, inputs(1, tokens))
    assert abs(cfg.flops(tokens) / counted - 1) < 0.05, f'counted {counted}, declared {cfg.flops(tokens)}'


@entries
def test_declared_sites_are_captured(name):
    cfg = ENTRIES[name]
    _, captured = jax.eval_shape(
        functools.partial(cfg.make().apply, mutable=['taps', 'patterns']),
        variables_of(name),
        inputs(),
        full_context(cfg),
    )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(dict(captured))]
    found = [path[-1].key for path in paths]
    assert sorted(found) == sorted({*cfg.sites, *cfg.pattern_sites})
    assert 'z' in captured['taps']
    chex.assert_shape(captured['taps']['z'], (BATCH, TOKENS, cfg.heads, None))


@entries
def test_edits_are_obeyed(name):
    (y, _), (silenced, _) = (run_in_bfloat16(name)(jnp.full((), scale)) for scale in (1.0, 0.0))
    assert np.max(np.abs(y)) > 0
    np.testing.assert_array_equal(silenced, jnp.zeros_like(silenced))


@entries
def test_a_wrong_context_shape_is_named(name):
    with pytest.raises(ValueError, match=r'context.segments has shape \(2, 5\)'):
        ENTRIES[name].make().apply(variables_of(name), inputs(), Context(segments=jnp.ones((2, 5), jnp.int32)))


def test_no_two_entries_are_alike():
    configs = list(MIXERS.values())
    assert len(set(configs)) == len(configs)
    for (a, x), (b, y) in itertools.combinations(MIXERS.items(), 2):
        assert dataclasses.asdict(x) != dataclasses.asdict(y) or type(x) is not type(y), f'{a} is {b}'


@entries
def test_configs_are_hashable_and_tiny_is_concrete(name):
    cfg = ENTRIES[name]
    assert hash(cfg) == hash(dataclasses.replace(cfg))
    assert cfg.width == 32
