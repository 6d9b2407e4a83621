"""Memories of any choices, run by any path on tokens drawn here, without the layer around them."""

import functools

import jax
import numpy as np

from jattn.contract import Context, Cursor, Rows, locate
from jattn.memories import MemoryConfig
from jattn.memories.architecture import MLP, Matrix
from jattn.memories.bias import L2, Dot
from jattn.memories.gates import Gate, Gates
from jattn.memories.learner import Learner
from jattn.memories.paths import PATHS
from jattn.memories.paths.matrix import MatrixState, cell
from jattn.memories.paths.state import Fresh
from jattn.memories.retention import Decay, Keep
from jattn.memories.tokens import Tokens, place

B, T, H, K = 2, 9, 2, 4
RAGGED = 19
SHUT = -1e4  # the log of a gate that lets nothing through: its exponential is 0 in every float


def memory(architecture=Matrix(), bias=L2(), retention=Keep(), learner=Learner(), heads=H, chunk=1, decay=Gate()):
    """A memory of the test's size, with a learned start and the gates that its choices need."""
    gates = Gates(
        decay=decay if retention.decays else None,
        momentum=Gate() if learner.momentum else None,
        threshold=Gate(kind='softplus') if bias.needs_threshold else None,
        window=Gate() if learner.window > 1 else None,
    )
    choices = dict(architecture=architecture, bias=bias, retention=retention, learner=learner)
    return MemoryConfig(**choices, gates=gates, width=heads * K, heads=heads, chunk=chunk, learned_start=True, tile=4)


def titans(architecture=Matrix(), chunk=1, **learner):
    return memory(architecture, retention=Decay(), learner=Learner(momentum=True, **learner), chunk=chunk)


def draw(cfg, tokens=T, batch=B, seed=0, bound=0.5):
    """Tokens of a memory with steps up to `bound`, its W_0 and its slow parameters, all of them random, in numpy."""
    rng, gates, shape = np.random.default_rng(seed), cfg.gates, (batch, tokens, cfg.heads)

    def unit():
        x = rng.normal(size=(*shape, K))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    per_channel = gates.decay is not None and gates.decay.per == 'channel'
    told = Tokens(
        q=unit(),
        k=unit(),
        v=rng.normal(size=(*shape, K)),
        step=rng.uniform(0, bound, shape),
        log_decay=None if gates.decay is None else -rng.uniform(0, 0.5, (*shape, K) if per_channel else shape),
        log_momentum=None if gates.momentum is None else np.log(rng.uniform(0.3, 0.9, shape)),
        threshold=None if gates.threshold is None else rng.uniform(0.5, 2, shape),
        weight=None if gates.window is None else rng.uniform(0, 1, shape),
    )
    shapes = cfg.architecture.shapes(K, K)
    initial = tuple(rng.normal(size=(cfg.heads, *size)) / np.sqrt(size[-1]) for size in shapes)
    wanted = cfg.architecture.slow(K) | cfg.retention.slow(shapes)
    slow = {name: mean + 0.1 * rng.normal(size=(cfg.heads, *size)) for name, (size, mean) in wanted.items()}
    return told, initial, slow


def constant(told, **gates):
    """The tokens with constant gates."""
    return told.replace(**{name: np.full_like(getattr(told, name), value) for name, value in gates.items()})


def begin(cfg, path, told):
    """The state (cursor, place, memory) before the first call, which starts its documents itself."""
    rows = len(told.q)
    empty = jax.eval_shape(lambda: PATHS[path].empty_state(cfg, rows))
    cursor = Cursor(segment=np.full(rows, -1, np.int32), position=np.zeros(rows, np.int32))
    return cursor, np.zeros(rows, np.int32), jax.tree.map(lambda x: np.zeros(x.shape, told.q.dtype), empty)


def advance(cfg, path, told, initial, slow, segments, state):
    """Outputs, weights and momentum after a call, and the state to go on from."""
    fresh = Fresh.of(cfg, initial, slow)
    rows = locate(Context(segments=segments), segments.shape, state[0])
    places = place(rows, segments.shape, cfg.chunk, state[1])
    entered = rows.enter(state[2], PATHS[path].fresh_state(cfg, fresh))
    y, after = PATHS[path].run(cfg, told, rows, places, fresh, entered)
    momentum = (cell(cfg, fresh, after) if isinstance(after, MatrixState) else after).momentum
    return (y, PATHS[path].weights(cfg, fresh, after), momentum), (rows.cursor, places.after, after)


compiled = jax.jit(advance, static_argnums=(0, 1))


def ones(told):
    return np.ones(told.q.shape[:2], np.int32)


def run(cfg, path, told, initial, slow, segments=None, state=None):
    """`advance` to numpy, one program for a memory and a path; one document, from its start, where nothing is said."""
    segments = ones(told) if segments is None else np.array(segments, np.int32)
    state = begin(cfg, path, told) if state is None else state
    return jax.device_get(compiled(cfg, path, told, initial, slow, segments, state))


@functools.partial(jax.jit, static_argnums=(0, 1))
def reads(cfg, path, told, initial, slow):
    """The outputs of a call without a state."""
    places = place(Rows(), told.q.shape[:2], cfg.chunk, None)
    return PATHS[path].run(cfg, told, Rows(), places, Fresh.of(cfg, initial, slow), None)[0]


def assert_near(a, b, tolerance=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.max(np.abs(np.asarray(y))), 1e-3))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@functools.partial(jax.jit, static_argnums=(0, 1))
def push(cfg, path, inputs, direction):
    """The outputs of a call without a state, and how they move when all inputs move in a direction."""
    return jax.jvp(functools.partial(reads, cfg, path), inputs, direction)


def corrected(w, k, v, step, kept):
    return kept * w - step * np.outer(w @ k - v, k)


TWO_LAYERS = MLP(expansion=1.5, activation='silu')
DEEP = {
    'depth 1': titans(chunk=4),
    'depth 2': titans(MLP(activation='silu', post='residual'), chunk=4),
    'depth 2, norm': titans(MLP(activation='silu'), chunk=4),
    'depth 3': titans(MLP(depth=3, expansion=1.5, activation='silu', post='none'), chunk=4),
}
LINEAR, FADING = titans(), memory(bias=Dot(), retention=Decay())
GLA = memory(bias=Dot(), retention=Decay(), decay=Gate(per='channel'))
