"""A memory as a token mixer (Miras; Behrouz et al. 2025): four choices, their gates, the layer around them, one module.

    W_t = argmin_W  <W, gradient of bias(M(k_t; W), v_t)> + retention(W, W_{t-1})           y_t = M(q_t; W_t)

M is the architecture, the learner says how the step is taken, the gates how far. Linear attention, the delta rules,
TTT, Titans, Moneta, Yaad and Memora are entries of one table (`members.py`), with no code of their own. How a memory is
computed is its path (`paths/`): chosen from the choices, or forced by name.

State: what the heads remember, constant in the length; the place in the chunk; the tails of the convolutions. Taps: q,
k, v, gates, z, state (state_0, state_1, ... with several weights), and from the token-by-token path, run beside the
fast one when somebody reads taps: surprise (norm of the inner gradient), write_size, state_norm, [B, T, H] each.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, Rows, divide, locate
from jattn.flops import traced_flops
from jattn.memories import paths
from jattn.memories.architecture import Architecture, Matrix
from jattn.memories.bias import L2, Bias
from jattn.memories.gates import Gates
from jattn.memories.learner import RIDGE_INIT, Learner
from jattn.memories.paths import generic
from jattn.memories.paths.state import Fresh
from jattn.memories.recipe import Recipe
from jattn.memories.retention import Decay, Keep, Retention
from jattn.memories.tokens import Places, Tokens, place
from jattn.nn.linear import Linear
from jattn.ops.fast_weights import dual
from jattn.ops.fast_weights.dual import Weights
from jattn.taps import captures, tap
from jattn.typing import Array, Float, Int32, Key, PyTree, at_least_float32

# The sites of the gates, by the gate that they come from.
GATE_SITES = {
    'step': 'step',
    'log_decay': 'decay',
    'log_momentum': 'momentum',
    'threshold': 'threshold',
    'weight': 'window',
}


@struct.dataclass
class MemoryState:
    """The state of a memory.

    Attributes:
        cursor: where the rows stand.
        place: [B], the place of the next token in its chunk.
        memory: of the path: a `MatrixState`, a `Cell` or a `RidgeState`.
        tails: of the recipe's convolutions.
    """

    cursor: Cursor
    place: Int32[Array, 'B']
    memory: PyTree
    tails: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig(MixerConfig):
    """A memory: any legal combination of the four choices.

    Attributes:
        heads: H; every head has a memory of its own.
        key_width, value_width: channels of all keys and of all values, as a multiple of the width.
        key_dim, value_dim: K and V of a head; None: as key_width and value_width say.
        architecture, bias, retention, learner: the four choices.
        gates: the data-dependent sizes of a step, a decay, ...
        recipe: the layer around the memory.
        chunk: C; gradients are taken at the weights of the chunk's start, chunks counted from the document's. 1: at the
            weights of the token itself.
        learned_start: whether W_0 is learned; a matrix may start at zero.
        persistent: N_p learned tokens (of the layer's input) that the memory reads before every document, as a chunk of
            their own; no output stands for them.
        tile: tokens of a chunk of the paths where it has no effect on the result; a power of two.
        path: 'auto', or one of `paths.PATHS`.
        implementation: of `ops.gated_linear_attention`, where a path calls it.
        shares_first_value: whether later layers mix their values with those of the first such layer (RWKV-7).

    >>> from jattn.memories import MEMORIES
    >>> cfg = dataclasses.replace(MEMORIES['titans_lmm'], width=64)
    >>> cfg.running_path, cfg.keys, cfg.state_bytes(capacity=10**6)
    ('dual', 16, 99484)
    """

    heads: int = 4
    key_width: float = 1.0
    value_width: float = 1.0
    key_dim: int | None = None
    value_dim: int | None = None
    architecture: Architecture = Matrix()
    bias: Bias = L2()
    retention: Retention = Keep()
    learner: Learner = Learner()
    gates: Gates = Gates()
    recipe: Recipe = Recipe()
    chunk: int = 1
    learned_start: bool = False
    persistent: int = 0
    tile: int = 64
    path: str = 'auto'
    implementation: str | None = None
    shares_first_value: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f'heads={self.heads} must be at least 1')
        if self.chunk < 1:
            raise ValueError(f'chunk={self.chunk} must be at least 1')
        if self.persistent < 0:
            raise ValueError(f'persistent={self.persistent} must not be negative')
        if self.tile < 1 or self.tile & (self.tile - 1):
            raise ValueError(f'tile={self.tile} must be a power of two')
        for reason in self._illegal():
            raise ValueError(f'no such memory: {reason}')
        if self.path != 'auto':
            if self.path not in paths.PATHS:
                raise ValueError(f'path={self.path!r} must be auto or one of {", ".join(paths.PATHS)}')
            if reason := paths.PATHS[self.path].refusal(self):
                raise ValueError(f'path={self.path!r} cannot run this memory: {reason}')
        if self.width is not None:
            self.architecture.check(self.keys, self.values)
            divide('heads', self.heads, 'recipe.key_groups', self.recipe.groups(self))

    def _illegal(self) -> list[str]:
        """Why the choices do not fit each other."""
        gates, learner = self.gates, self.learner
        per_channel = gates.decay is not None and gates.decay.per == 'channel'
        linear = self.architecture.is_linear and self.retention.is_linear
        rules = (
            (
                gates.decay is not None and not self.retention.decays,
                f'gates.decay is set, but retention {_name(self.retention)} forgets nothing',
            ),
            (
                gates.decay is None and isinstance(self.retention, Decay),
                'retention Decay needs gates.decay (None: retention keep)',
            ),
            (
                learner.momentum != (gates.momentum is not None),
                f'learner.momentum={learner.momentum} needs gates.momentum {"set" if learner.momentum else "None"}',
            ),
            (
                self.bias.needs_threshold != (gates.threshold is not None),
                f'bias {_name(self.bias)} and gates.threshold: a loss that bends takes a gate, and no other does',
            ),
            (gates.window is not None and learner.window == 1, 'gates.window weighs a window, but learner.window=1'),
            (
                learner.error == 'decayed' and (self.chunk > 1 or not linear or gates.decay is None),
                "learner.error='decayed' needs chunk=1, a matrix and a linear retention with a decay",
            ),
            (
                per_channel and (not linear or learner.momentum or (self.chunk > 1)),
                'a decay per channel needs a matrix, a linear retention, no momentum and chunk=1',
            ),
            (
                (learner.per_chunk or learner.averaged) and self.chunk == 1,
                'learner.per_chunk and learner.averaged need chunk > 1',
            ),
            (
                learner.per_chunk and gates.step.per == 'channel',
                'learner.per_chunk=True takes a step per head',
            ),
            (
                learner.solver != 'gradient' and not (linear and isinstance(self.bias, L2) and self.chunk == 1),
                f'learner.solver={learner.solver!r} needs a matrix, the l2 bias, a linear retention and chunk=1',
            ),
            (
                learner.solver != 'gradient' and not learner.diagonal and gates.step.per == 'channel',
                f'learner.solver={learner.solver!r} takes a step per head',
            ),
            (self.bias.erases and gates.step.per == 'channel', 'erasing along keys of its own takes a step per head'),
            (
                learner.steps > 1 and not (linear and isinstance(self.bias, L2) and self.chunk == 1),
                f'learner.steps={learner.steps} needs a matrix, the l2 bias, a linear retention and chunk=1',
            ),
            (
                self.bias.erases and not (linear and self.chunk == 1 and learner == Learner()),
                f'bias {_name(self.bias)} needs a matrix, a linear retention, chunk=1 and plain gradient descent',
            ),
            (
                self.recipe.normaliser and not (self.architecture.is_linear and self.bias.is_constant),
                'recipe.normaliser=True needs a matrix and the dot-product bias',
            ),
            (
                self.recipe.complement_keys and not per_channel,
                'recipe.complement_keys=True needs a decay per channel',
            ),
            (
                learner.solver == 'ridge' and (self.learned_start or self.persistent > 0),
                "learner.solver='ridge' starts from nothing: learned_start=False, persistent=0",
            ),
            (
                not (self.learned_start or self.architecture.starts_at_zero),
                f'architecture {_name(self.architecture)} needs learned_start=True: at zero all its gradients are zero',
            ),
        )
        return [reason for broken, reason in rules if broken]

    @property
    def keys(self) -> int:
        """K, the key channels of a head."""
        return self.key_dim or self._share('key_width', self.key_width)

    @property
    def head_values(self) -> int:
        """The value channels of a head that the layer sees."""
        return self.value_dim or self._share('value_width', self.value_width)

    @property
    def values(self) -> int:
        """V, the value channels of a head's memory: one more with a normaliser."""
        return self.head_values + self.recipe.normaliser

    @property
    def document_align(self) -> int:
        return self.chunk if self.running_path in ('dual', 'chunk_blind') else 1

    @property
    def running_path(self) -> str:
        """The path in force."""
        if self.path != 'auto':
            return self.path
        return next(name for name, path in paths.PATHS.items() if path.refusal(self) is None)

    @property
    def step_bound(self) -> float:
        """The stable bound of a step: keys of length 1, steps of a chunk at the same weights, summed."""
        return min(1.0, 4 / self.chunk)

    @property
    def shares_time_step(self) -> bool:
        """Whether step and decay are made from one time step (Mamba-2)."""
        decay = self.gates.decay
        return decay is not None and decay.kind == 'time_step' and self.gates.step.kind == 'time_step'

    @property
    def has_start(self) -> bool:
        """Whether documents start at weights that are not zero."""
        return self.learned_start or self.persistent > 0

    @property
    def sites(self) -> tuple[str, ...]:
        names = [site for site, gate in GATE_SITES.items() if getattr(self.gates, gate) is not None]
        count = len(self.architecture.shapes(self.keys, self.values))
        states = ['state'] if count == 1 else [f'state_{n}' for n in range(count)]
        return ('q', 'k', 'v', *names, 'z', *states, 'surprise', 'write_size', 'state_norm')

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Memory(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> MemoryState:
        del capacity  # constant in the length
        return MemoryState(
            cursor=Cursor.fresh(batch),
            place=jnp.zeros(batch, jnp.int32),
            memory=paths.PATHS[self.running_path].empty_state(self, batch),
            tails=self.recipe.init_tails(self, batch, dtype),
        )

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def example_context(self, key: Key, batch: int, tokens: int) -> Context:
        if not self.shares_first_value:
            return Context()
        return Context(first_value=jax.random.normal(key, (batch, tokens, self.heads, self.values)))

    def tiny(self) -> Self:
        return dataclasses.replace(
            self,
            width=32,
            heads=4,
            key_dim=None if self.key_dim is None else 8,
            value_dim=None if self.value_dim is None else 8,
            chunk=min(self.chunk, 4),
            tile=8,
            recipe=self.recipe.tiny(),
        )

    def _share(self, name: str, multiple: float) -> int:
        channels = round(multiple * self.require_width())
        return divide(f'{name} * width', channels, 'heads', self.heads)


class Memory(nn.Module):
    """The module of `MemoryConfig`."""

    cfg: MemoryConfig

    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: MemoryState | None = None
    ) -> tuple[Float[Array, 'B T D'], MemoryState | None]:
        z, state, _ = self.reads(x, context, state)
        return self._run('project', tap(self, 'z', z)), state

    def first_value(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: MemoryState | None = None
    ) -> Float[Array, 'B T H V']:
        """The layer's own values; of a config with `shares_first_value`."""
        return self._run('values', x, context, state)

    def reads(
        self,
        x: Float[Array, 'B T D'],
        context: Context = Context(),
        state: MemoryState | None = None,
        persistent: Float[Array, 'N D'] | None = None,
    ) -> tuple[Float[Array, 'B T H V'], MemoryState | None, Float[Array, 'N H V'] | None]:
        """What the output projection takes, the state, and what it would take of the persistent tokens.

        `persistent` are such tokens that the caller learns; None: the memory's own, if it has any.
        """
        return self._run('read', x, context, state, persistent)

    def weights(self, batch: int, state: MemoryState | None = None) -> Weights:
        """The weights [B, H, ...] that a read after the state's last token sees; None: those of a document's start."""
        return self._run('weights', batch, state)

    def retrieve(self, weights: Weights, q: Float[Array, 'B T H K']) -> Float[Array, 'B T H V']:
        """The network at these weights, on queries; nothing is learned."""
        return self._run('retrieve', weights, q)

    @nn.compact
    def _run(self, what: str, *args: Any) -> Any:
        """All methods make their parameters here."""
        return getattr(self, f'_{what}')(*args)

    def _project(self, z: Array) -> Array:
        return Linear((self.cfg.require_width(),), ('heads', 'head', 'embed'), name='o_proj')(z)

    def _values(self, x: Array, context: Context, state: MemoryState | None) -> Array:
        rows, places, tails = self._placed(x, context, state)
        return self.cfg.recipe.read_in(self.cfg)(x, rows, context, tails, places.place, values_only=True)

    def _read(self, x: Array, context: Context, state: MemoryState | None, persistent: Array | None) -> tuple:
        cfg, path = self.cfg, paths.PATHS[self.cfg.running_path]
        rows, places, tails = self._placed(x, context, state)
        read_in, read_out = cfg.recipe.read_in(cfg), cfg.recipe.read_out(cfg)
        tokens, tails = read_in(x, rows, context, tails, places.place)
        tokens = self._tapped(tokens)
        fresh, of_persistent = self._fresh(read_in, read_out, persistent, x.dtype)
        start = path.fresh_state(cfg, fresh)
        if state is not None:
            before = rows.enter(state.memory, start)
        else:  # somebody reads the state after the call: it needs one before
            before = jax.tree.map(lambda leaf: _rows(leaf, len(x)), start) if captures(self) else None

        y, memory = path.run(cfg, tokens, rows, places, fresh, before)
        if captures(self):
            for site, value in path.readings(cfg, tokens, rows, places, fresh, before, memory).items():
                tap(self, site, value)
        after = None if state is None else MemoryState(rows.cursor, places.after, memory, tails)
        return read_out(x, y, tokens), after, of_persistent

    def _weights(self, batch: int, state: MemoryState | None) -> Weights:
        cfg, path = self.cfg, paths.PATHS[self.cfg.running_path]
        recipe = cfg.recipe
        fresh, _ = self._fresh(recipe.read_in(cfg), recipe.read_out(cfg), None, jnp.float32)
        memory = path.fresh_state(cfg, fresh) if state is None else state.memory
        if state is None:
            memory = jax.tree.map(lambda leaf: _rows(leaf, batch), memory)
        return path.weights(cfg, fresh, memory)

    def _retrieve(self, weights: Weights, q: Array) -> Array:
        def head(weights: Weights, q: Array, slow: dict[str, Array]) -> Array:
            return self.cfg.architecture.forward(lambda layer, x: dual.apply(weights[layer], x), q, slow)

        over_heads = jax.vmap(head, in_axes=(0, 1, 0), out_axes=1)
        return jax.vmap(over_heads, in_axes=(0, 0, None))(weights, q, self._slow())

    def _placed(self, x: Array, context: Context, state: MemoryState | None) -> tuple[Rows, Places, PyTree]:
        """The call's rows, its places in chunks, and the tails before it."""
        _check_state(self.cfg, state, x)
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        places = place(rows, x.shape[:2], self.cfg.chunk, None if state is None else state.place)
        return rows, places, None if state is None else state.tails

    def _tapped(self, tokens: Tokens) -> Tokens:
        """The tokens with their sites."""
        sites = ['q', 'k', 'v', *(site for site in GATE_SITES if getattr(tokens, site) is not None)]
        tokens = tokens.replace(**{site: tap(self, site, getattr(tokens, site)) for site in sites})
        if not self.cfg.recipe.normaliser:
            return tokens
        v = tokens.v.astype(at_least_float32(tokens.v))
        return tokens.replace(v=jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1))

    def _fresh(
        self, read_in: nn.Module, read_out: nn.Module, learned: Array | None, dtype: jnp.dtype
    ) -> tuple[Fresh, Array | None]:
        """What a document starts with: the learned weights, after the persistent tokens; and the reads of these."""
        cfg = self.cfg
        initial, slow = self._initial(), self._slow()
        fresh = Fresh.of(cfg, initial, slow)
        if not cfg.persistent:
            return fresh, None
        if learned is None:
            init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('position', 'channel'))
            learned = self.param('persistent', init, (cfg.persistent, cfg.require_width()), jnp.float32)
        inputs = learned[None].astype(dtype)
        shape = (1, cfg.persistent)
        # One chunk, whatever C is: all their gradients are taken at W_0; with C = 1 each at its own weights.
        once = dataclasses.replace(cfg, chunk=cfg.persistent if cfg.chunk > 1 else 1, persistent=0, path='generic')
        places = place(Rows(), shape, once.chunk, None)
        tokens, _ = read_in(inputs, Rows(), Context(), None, places.place)
        cell = jax.tree.map(lambda leaf: _rows(leaf, 1), fresh.cell)
        y, cell, _ = generic.trace(once, tokens, places, fresh, cell)
        return fresh.replace(cell=jax.tree.map(lambda leaf: leaf[0], cell)), read_out(inputs, y, tokens)[0]

    def _initial(self) -> tuple[Array, ...]:
        """W_0 of every head."""
        cfg = self.cfg
        shapes = cfg.architecture.shapes(cfg.keys, cfg.values)
        if not cfg.learned_start:
            return tuple(jnp.zeros((cfg.heads, *shape), jnp.float32) for shape in shapes)

        def init(n: int) -> Any:
            return lambda key, *_: cfg.architecture.init(jax.random.fold_in(key, n), shapes, cfg.heads)[n]

        axes = [('heads', 'memory_out', 'memory_in')[: 1 + len(shape)] for shape in shapes]
        return tuple(
            self.param(f'memory_{n}', nn.with_logical_partitioning(init(n), names)) for n, names in enumerate(axes)
        )

    def _slow(self) -> dict[str, Array]:
        """The slow parameters of every head."""
        cfg = self.cfg
        shapes = cfg.architecture.shapes(cfg.keys, cfg.values)
        wanted = cfg.architecture.slow(cfg.values) | cfg.retention.slow(shapes)
        if cfg.learner.solver == 'ridge':
            wanted |= {'ridge': ((cfg.keys,), RIDGE_INIT)}
        slow = {}
        for name, (shape, value) in wanted.items():
            init = nn.with_logical_partitioning(nn.initializers.constant(value), ('heads', 'head')[: 1 + len(shape)])
            slow[name] = self.param(name, init, (cfg.heads, *shape), jnp.float32)
        if cfg.learner.averaged:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('tap',))
            offsets = self.param('offsets', zeros, (cfg.chunk,), jnp.float32)
            slow['offsets'] = _rows(offsets, cfg.heads)
        return slow


def _rows(leaf: Array, rows: int) -> Array:
    """The same for every row."""
    return jnp.broadcast_to(leaf[None], (rows, *leaf.shape))


def _name(choice: Any) -> str:
    return type(choice).__name__


def _check_state(cfg: MemoryConfig, state: Any, x: Array) -> None:
    """An error for the state of another memory or another width, which would broadcast or fail deep inside."""
    if x.shape[-1] != cfg.require_width():
        raise ValueError(f'the input has width {x.shape[-1]}, but width={cfg.width}')
    if state is None:
        return
    expected = jax.eval_shape(lambda: cfg.init_state(len(x), 1))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(
            f'the state is not of this memory: {jax.tree.structure(state)}, not {jax.tree.structure(expected)}'
        )
    for (path, own), given in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state)):
        if own.shape != given.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f'state{name} has shape {given.shape}, but this memory and batch need {own.shape}')
