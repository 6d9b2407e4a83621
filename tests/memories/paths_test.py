"""All paths that can run a memory agree with the token-by-token oracle: outputs, states and all gradients, in float64.

Memories are run on tokens drawn here, without the layer around them: unit keys, gates inside their bounds, learned or
random starts, documents packed at the chunk's multiples, and states handed over at any place in a chunk.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context, Cursor, locate
from jattn.memories import MEMORIES
from jattn.memories.architecture import MLP, Gated, Matrix, Vector
from jattn.memories.bias import L1, L2, LP, Dot, Huber, Robust
from jattn.memories.gates import Gate, Gates
from jattn.memories.learner import Learner
from jattn.memories.paths import PATHS
from jattn.memories.paths.state import Fresh
from jattn.memories.retention import KL, Bregman, Decay, ElasticNet, FDivergence, Keep, Lq, RowNorm
from jattn.memories.tokens import Tokens, place
from jattn.ops.fast_weights import dual

B, T, H, K = 2, 19, 2, 4
STEP, DECAY, MOMENTUM = Gate(), Gate(bias=2.0), Gate(bound=0.95)


def memory(**choices):
    """A memory of the test's size; gates as the choices need them."""
    retention, learner, bias = (
        choices.get(n, d) for n, d in (('retention', Keep()), ('learner', Learner()), ('bias', L2()))
    )
    gates = Gates(
        step=choices.pop('step', STEP),
        decay=choices.pop('decay', DECAY if retention.decays else None),
        momentum=MOMENTUM if learner.momentum else None,
        threshold=Gate(kind='softplus') if bias.needs_threshold else None,
        window=Gate() if learner.window > 1 else None,
    )
    architecture = choices.get('architecture', Matrix())
    choices.setdefault('learned_start', not architecture.starts_at_zero)
    config = next(iter(MEMORIES.values()))
    recipe = dataclasses.replace(MEMORIES['deltanet'].recipe)
    return dataclasses.replace(
        config,
        width=H * K,
        heads=H,
        recipe=recipe,
        gates=gates,
        tile=4,
        **({'bias': bias, 'retention': retention} | choices),
    )


PER_CHANNEL = Gate(per='channel', bias=2.0)
CHUNKED = {
    'vector': memory(architecture=Vector(), chunk=4),
    'matrix': memory(chunk=4, retention=Decay(), learner=Learner(momentum=True)),
    'matrix, dot': memory(chunk=4, bias=Dot(), retention=Decay()),
    'depth 1, norm': memory(chunk=4, architecture=MLP(depth=1, use_bias=True), learner=Learner(averaged=True)),
    'depth 2': memory(chunk=4, architecture=MLP(post='none', activation='silu'), retention=Decay()),
    'depth 2, momentum': memory(chunk=4, architecture=MLP(), retention=Decay(), learner=Learner(momentum=True)),
    'depth 3': memory(
        chunk=8,
        architecture=MLP(depth=3, expansion=1.5, post='residual', use_bias=True),
        retention=Decay(),
        learner=Learner(momentum=True),
    ),
    'depth 2, averaged': memory(chunk=4, architecture=MLP(use_bias=True), learner=Learner(averaged=True)),
    'gated': memory(chunk=4, architecture=Gated(), retention=Decay()),
    'reads before': memory(
        chunk=4, architecture=MLP(), retention=Decay(), learner=Learner(momentum=True, reads='before')
    ),
    'window': memory(chunk=4, architecture=MLP(), retention=Decay(), learner=Learner(momentum=True, window=3)),
    'long window': memory(chunk=4, retention=Decay(), learner=Learner(window=7)),
    'l3, channels': memory(chunk=4, architecture=MLP(), bias=LP(), retention=Decay(), step=Gate(per='channel')),
    'l1': memory(chunk=4, architecture=MLP(), bias=L1(epsilon=1e-2), retention=Decay()),
    'huber': memory(chunk=4, architecture=MLP(), bias=Huber(), retention=Decay(), step=Gate(per='channel')),
    'huber, coordinate': memory(chunk=4, bias=Huber(form='coordinate'), retention=Decay()),
    'huber, mixture, window': memory(
        chunk=4, bias=Huber(form='mixture'), retention=Decay(), learner=Learner(window=3), step=Gate(per='channel')
    ),
    'robust': memory(chunk=4, architecture=MLP(), bias=Robust(), retention=Decay()),
    'towards initial': memory(chunk=4, architecture=MLP(), retention=Decay(towards='initial')),
    'lq': memory(chunk=4, architecture=MLP(), retention=Lq(), bias=LP()),
    'lq, towards initial': memory(chunk=4, architecture=MLP(), retention=Lq(towards='initial'), bias=LP()),
    'lq, dual': memory(chunk=4, architecture=MLP(), retention=Lq(form='dual')),
    'kl, towards initial': memory(chunk=4, architecture=MLP(), retention=KL(towards='initial')),
    'kl': memory(chunk=4, architecture=MLP(), retention=KL()),
    'elastic net': memory(chunk=4, architecture=MLP(), retention=ElasticNet(threshold=0.01)),
    'bregman': memory(chunk=4, architecture=MLP(post='residual'), retention=Bregman()),
    'f divergence': memory(chunk=4, architecture=MLP(), retention=FDivergence()),
    'row norm, blind': memory(
        chunk=4, architecture=Gated(), bias=Dot(), retention=RowNorm(), learner=Learner(per_chunk=True)
    ),
    'blind, momentum': memory(
        chunk=4, architecture=Gated(), bias=Dot(), retention=Decay(), learner=Learner(per_chunk=True, momentum=True)
    ),
    'muon': memory(
        chunk=4,
        architecture=MLP(),
        retention=Decay(),
        learner=Learner(per_chunk=True, momentum=True, orthogonal=True, window=3),
    ),
}
EXACT = {
    'dot': memory(bias=Dot()),
    'dot, decay': memory(bias=Dot(), retention=Decay(), step=Gate(per='channel'), learned_start=True),
    'l2': memory(),
    'l2, raw': memory(retention=Decay(), learned_start=True),
    'l2, decayed': memory(retention=Decay(), learner=Learner(error='decayed'), learned_start=True),
    'momentum': memory(retention=Decay(), learner=Learner(momentum=True), learned_start=True),
    'momentum, kept': memory(learner=Learner(momentum=True)),
    'implicit': memory(retention=Decay(), learner=Learner(solver='implicit')),
    'diagonal': memory(retention=Decay(), learner=Learner(solver='implicit', diagonal=True), step=Gate(per='channel')),
    'products': memory(retention=Decay(), learner=Learner(steps=3, error='decayed'), learned_start=True),
    'dot, channels': memory(bias=Dot(), retention=Decay(), decay=PER_CHANNEL, learned_start=True),
    'l2, channels': memory(retention=Decay(), decay=PER_CHANNEL, learner=Learner(error='decayed'), learned_start=True),
    'l2, raw, channels': memory(retention=Decay(), decay=PER_CHANNEL, learned_start=True),
    'erasing': memory(bias=MEMORIES['rwkv7'].bias, retention=Decay(), decay=PER_CHANNEL),
    'erasing, scalar': memory(bias=MEMORIES['rwkv7'].bias, retention=Decay()),
}
CASES = CHUNKED | EXACT
PAIRS = [
    (name, path)
    for name, cfg in CASES.items()
    for path, module in PATHS.items()
    if path != 'generic' and module.refusal(cfg) is None
]


def draw(cfg, tokens=T, seed=0):
    """Tokens of a memory, and what it starts with; float64."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    shape, gates, steps = (B, tokens, H), cfg.gates, cfg.learner.steps

    def normal(*sizes):
        return jax.random.normal(next(keys), sizes, jnp.float64)

    def unit(*sizes):
        x = normal(*sizes)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def between(low, high, *sizes):
        return jax.random.uniform(next(keys), sizes, jnp.float64, low, high)

    several = (H, steps) if steps > 1 else (H,)
    per_channel = gates.decay is not None and gates.decay.per == 'channel'
    bound = min(1.0, 2 / cfg.chunk)
    return Tokens(
        q=unit(*shape, K),
        k=unit(*shape[:2], *several, K),
        v=normal(*shape[:2], *several, K),
        step=between(0, bound, *shape[:2], *several, *((K,) if gates.step.per == 'channel' else ())),
        log_decay=None if gates.decay is None else -between(0, 0.5, *shape, *((K,) if per_channel else ())),
        log_momentum=None if gates.momentum is None else jnp.log(between(0.3, 0.9, *shape)),
        threshold=None if gates.threshold is None else between(0.5, 2, *shape),
        weight=None if gates.window is None else between(0, 1, *shape),
        erase=(unit(*shape, K), unit(*shape, K) * between(0, 1, *shape, 1)) if cfg.bias.erases else None,
    )


def start(cfg, seed=5):
    """Initial weights and slow parameters, all of them random."""
    shapes = cfg.architecture.shapes(cfg.keys, cfg.values)
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    if cfg.learned_start:
        initial = tuple(0.5 * jax.random.normal(next(keys), (H, *shape), jnp.float64) for shape in shapes)
    else:
        initial = tuple(jnp.zeros((H, *shape), jnp.float64) for shape in shapes)
    wanted = cfg.architecture.slow(cfg.values) | cfg.retention.slow(shapes)
    slow = {
        name: value + 0.1 * jax.random.normal(next(keys), (H, *shape), jnp.float64)
        for name, (shape, value) in wanted.items()
    }
    if cfg.learner.averaged:
        slow['offsets'] = 0.02 * jax.random.normal(next(keys), (H, cfg.chunk), jnp.float64)
    return initial, slow


@functools.partial(jax.jit, static_argnums=(0, 1))
def whole(cfg, path, tokens, initial, slow, segments=jnp.ones((B, T), jnp.int32)):
    """The outputs of a call without a state, and the gradients of a projection of them by tokens and start."""

    def loss(tokens, initial, slow):
        rows = locate(Context(segments=segments), tokens.q.shape[:2])
        places = place(rows, tokens.q.shape[:2], cfg.chunk, None)
        y = PATHS[path].run(cfg, tokens, rows, places, Fresh.of(cfg, initial, slow), None)[0]
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y

    gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(tokens, initial, slow)
    return y, gradients if cfg.learned_start else (gradients[0], gradients[2])


@functools.partial(jax.jit, static_argnums=(0, 1))
def resume(cfg, path, tokens, initial, slow, state, segments):
    """The outputs of a call and the state (cursor, place, memory) after it."""
    cursor, at, before = state
    rows = locate(Context(segments=segments), tokens.q.shape[:2], cursor)
    places = place(rows, tokens.q.shape[:2], cfg.chunk, at)
    fresh, module = Fresh.of(cfg, initial, slow), PATHS[path]
    entered = rows.enter(before, module.fresh_state(cfg, fresh))
    y, after = module.run(cfg, tokens, rows, places, fresh, entered)
    return y, (rows.cursor, places.after, after)


def first_state(cfg, path):
    memory = jax.tree.map(lambda x: x.astype(jnp.float64), PATHS[path].empty_state(cfg, B))
    return Cursor.fresh(B), jnp.zeros(B, jnp.int32), memory


def assert_near(a, b, tolerance=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(float(np.max(np.abs(y))), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# One case of every kind; the others run in make test-all.
QUICK = {
    'vector',
    'depth 1, norm',
    'depth 3',
    'window',
    'huber',
    'kl',
    'towards initial',
    'muon',
    'dot, decay',
    'l2, raw',
    'momentum',
    'products',
    'l2, channels',
    'erasing',
}


def over(pairs):
    def marks(name):
        return [pytest.mark.xdist_group(name), *([] if name in QUICK else [pytest.mark.slow])]

    return pytest.mark.parametrize(('name', 'path'), [pytest.param(*pair, marks=marks(pair[0])) for pair in pairs])


@over(PAIRS)
def test_path_equals_the_oracle_with_all_gradients(name, path):
    cfg = CASES[name]
    tokens, (initial, slow) = draw(cfg), start(cfg)
    y, gradients = whole(cfg, path, tokens, initial, slow)
    expected, oracle = whole(cfg, 'generic', tokens, initial, slow)
    assert_near(y, expected)
    assert_near(gradients, oracle, 1e-9)


@pytest.mark.parametrize('name', ['depth 1, norm', 'depth 2', 'depth 2, momentum', 'depth 3'])
def test_in_float32_the_dual_form_is_as_near_to_the_truth_as_the_oracle(name):
    cfg, drawn = CASES[name], jax.tree.map(np.float32, (draw(CASES[name]), *start(CASES[name])))
    exact = whole(cfg, 'generic', *jax.tree.map(np.float64, drawn))
    with jax.enable_x64(False):
        (y, gradients), (expected, oracle) = (whole(cfg, path, *drawn) for path in ('dual', 'generic'))
    assert y.dtype == np.float32
    assert_near(y, expected, 1e-5)
    # A LayerNorm in the memory multiplies roundings: there the oracle's own gradients are more than 1e-5 off.
    for ours, theirs, truth in zip(*map(jax.tree.leaves, (gradients, oracle, exact[1])), strict=True):
        off = lambda found: np.max(np.abs(found - truth)) / max(np.max(np.abs(truth)), 1e-3)  # noqa: B023
        assert off(ours) < max(1e-5, 3 * off(theirs))


@over(PAIRS)
def test_a_state_handed_over_anywhere_in_a_chunk_is_exact(name, path):
    cfg = CASES[name]
    tokens, (initial, slow) = draw(cfg), start(cfg)
    expected, _ = whole(cfg, 'generic', tokens, initial, slow)
    state, outputs, at = first_state(cfg, path), [], 0
    for length in (6, 1, 6, 6):
        part = jax.tree.map(lambda x: x[:, at : at + length], tokens)  # noqa: B023
        y, state = resume(cfg, path, part, initial, slow, state, jnp.ones((B, length), jnp.int32))
        outputs.append(y)
        at += length
    assert_near(jnp.concatenate(outputs, axis=1), expected)


@over([*PAIRS, *((name, 'generic') for name in CASES)])
def test_documents_and_padding_in_a_row_equal_separate_calls(name, path):
    cfg = CASES[name]
    tokens, (initial, slow) = draw(cfg), start(cfg)
    segments = jnp.array([[4] * 8 + [5] * 11, [0] * 8 + [2] * 5 + [0] * 3 + [3] * 3], jnp.int32)
    packed, _ = whole(cfg, path, tokens, initial, slow, segments)
    for row, first, last in ((0, 0, 8), (0, 8, 19), (1, 8, 13), (1, 16, 19)):
        alone = jax.tree.map(lambda x: jnp.roll(x, -first, axis=1), tokens)  # noqa: B023
        expected, _ = whole(cfg, 'generic', alone, initial, slow)
        assert_near(packed[row, first:last], expected[row, : last - first])
    assert not np.any(packed[1, :8])


@pytest.mark.parametrize('name', ['l2, raw', 'l2, raw, channels', 'ridge', 'depth 3', 'blind, momentum'])
def test_weights_after_a_call_answer_as_its_last_token_reads(name):
    cfg = (CHUNKED | EXACT | {'ridge': memory(retention=Decay(), learner=Learner(solver='ridge', iterations=6))})[name]
    path, (initial, slow) = cfg.running_path, start(cfg)
    if name == 'ridge':
        slow = {'ridge': jnp.zeros((H, K))}
    tokens = draw(cfg, 17)  # ends with the first token of a chunk
    _, (_, _, after) = resume(cfg, path, tokens, initial, slow, first_state(cfg, path), jnp.ones((B, 17), jnp.int32))
    y = whole(cfg, path, tokens, initial, slow, jnp.ones((B, 17), jnp.int32))[0]
    weights = PATHS[path].weights(cfg, Fresh.of(cfg, initial, slow), after)

    def head(weights, q, slow):
        return cfg.architecture.forward(lambda layer, x: dual.apply(weights[layer], x), q, slow)

    answers = jax.vmap(jax.vmap(head), in_axes=(0, 0, None))(weights, tokens.q[:, -1, :, None], slow)[:, :, 0]
    assert_near(answers, y[:, -1])


def test_a_document_that_starts_inside_a_chunk_reads_nan():
    cfg = CASES['depth 2']
    tokens, (initial, slow) = draw(cfg), start(cfg)
    segments = jnp.array([[4] * 6 + [5] * 13, [1] * 19], jnp.int32)
    y, _ = whole(cfg, 'dual', tokens, initial, slow, segments)
    assert np.all(np.isfinite(y[0, :6])) and np.all(np.isnan(y[0, 6:])) and np.all(np.isfinite(y[1]))
