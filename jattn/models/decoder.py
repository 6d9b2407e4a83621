"""The decoder: a read-in, a tiled pattern of blocks, a read-out. Any mixer, any hybrid, one file.

    x = read_in(inputs) (+ position_p)
    x = x + mixer(norm(x));   x = x + feed_forward(norm(x))        for every layer, where block='pre'
    outputs = read_out(norm(x))

Other forms of a block are those of published models: `post` x = norm(x + f(x)), and no norm at the end (BERT);
`sandwich` x = x + norm(f(norm(x))) (Gemma 2); `parallel` x = x + mixer(norm(x)) + feed_forward(norm(x)) (GPT-NeoX).

The pattern of mixers is tiled over the depth: (a, b, c) over 7 layers is a b c a b c a. With `scan` the whole repeats
of the pattern are one `nn.scan` (compile time does not grow with the depth); the remainder is scanned at length 1, so
that every parameter, tap and state of a layer has a leading repeat axis. Without `scan` the pattern is the whole depth
and is repeated once: the same tree, the same rule. `layer_sites()` maps a layer to its place.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, locate
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.trunk import TrunkConfig
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.linear import Linear
from jattn.nn.norm import NORMS
from jattn.nn.side_channels import LOSSES, METRICS, MIXER_STATE
from jattn.taps import EDITS, PATTERNS, TAPS, tap
from jattn.typing import Array, Bool, Float, PyTree

BLOCKS = ('pre', 'post', 'sandwich', 'parallel')
READS = {'mixer': 'attn_in', 'cross': 'cross_in', 'feed_forward': 'mlp_in'}  # part of a block -> site of what it reads
REMAT = ('none', 'block')
READ_IN = ('tokens', 'linear')
# Collections that have one entry a layer; `edits` is read, the others are written.
LAYERED = dict.fromkeys(('params', TAPS, PATTERNS, EDITS, LOSSES, METRICS, MIXER_STATE, 'batch_stats'), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrunkConfig):
    """The decoder.

    Attributes:
        width: D.
        layers: L.
        mixer: the pattern of mixers that is tiled over the layers; their width is filled in here.
        cross: attention to `context.source` after every mixer; None: none.
        feed_forward: of every block; None: blocks are mixers alone.
        norm: 'rms' or 'layer'.
        norm_epsilon: of all norms of the trunk.
        block: where a block's norms stand: 'pre', 'post', 'sandwich' or 'parallel'.
        layer_scale: the first value of a learned scale of every channel of what a block adds (Touvron et al. 2021);
            None: none.
        read_in: 'tokens' (an embedding) or 'linear' (vectors); None: as the data says.
        input_size: vocabulary, or features of an input vector; None: as the data says.
        output_size: vocabulary, or features of an output vector; None: as the data says.
        max_positions: learned absolute positions 0 .. max_positions-1, added to the read-in; None: none.
        embed_scale: of embedded tokens; None: sqrt(D), unit variance at the start.
        embed_norm: a norm of what goes into the first block.
        tied: the read-out is the transposed embedding (tokens only).
        softcap: c, outputs become c tanh(outputs / c); None: as they are.
        ends_hidden: units of a hidden GELU layer in the read-in of vectors and in the read-out (what a frozen backbone
            is read through); None: both are linear.
        scan: whether the repeats of the pattern are scanned.
        remat: 'block' recomputes every block in the backward pass; 'none' stores all.
        dtype: of the activations; parameters are float32.

    >>> cfg = DecoderConfig(width=16, layers=3, read_in='tokens', input_size=256, output_size=256)
    >>> model = cfg.make()
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    >>> logits, _ = model.apply({'params': params}, jnp.zeros((1, 4), jnp.int32))
    >>> logits.shape
    (1, 4, 256)
    """

    layers: int = 4
    mixer: tuple[MixerConfig, ...] = (SoftmaxConfig(),)
    cross: CrossAttentionConfig | None = None
    feed_forward: FeedForwardConfig | None = FeedForwardConfig()
    norm: str = 'rms'
    norm_epsilon: float = 1e-6
    block: str = 'pre'
    layer_scale: float | None = None
    read_in: str | None = None
    input_size: int | None = None
    output_size: int | None = None
    max_positions: int | None = None
    embed_scale: float | None = None
    embed_norm: bool = False
    tied: bool = False
    softcap: float | None = None
    ends_hidden: int | None = None
    scan: bool = True
    remat: str = 'block'
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        for name, value, legal in (
            ('norm', self.norm, tuple(NORMS)),
            ('block', self.block, BLOCKS),
            ('remat', self.remat, REMAT),
            ('read_in', self.read_in, (*READ_IN, None)),
        ):
            if value not in legal:
                raise ValueError(f'{name}={value!r} must be one of {", ".join(map(str, legal))}')
        if not self.mixer:
            raise ValueError('mixer=() must name at least one mixer')
        if self.layers < 1 or self.width < 1:
            raise ValueError(f'layers={self.layers} and width={self.width} must be positive')
        if self.block == 'parallel' and (self.cross is not None or self.feed_forward is None):
            raise ValueError("block='parallel' is a mixer beside a feed-forward: cross must be None, feed_forward not")
        if self.tied and self.read_in == 'linear':
            raise ValueError("tied=True needs an embedding, but read_in='linear'")
        if self.ends_hidden is not None and (self.tied or self.ends_hidden < 1):
            raise ValueError(
                f'ends_hidden={self.ends_hidden} must be positive, and a tied read-out has no hidden layer'
            )
        shared = {(m.heads, m.values) for m in self.mixers() if m.shares_first_value}  # each checks its own sizes
        if len(shared) > 1:
            raise ValueError(f'mixers that share their first values need equal heads and values, not {sorted(shared)}')

    def mixers(self) -> tuple[MixerConfig, ...]:
        """The mixer of every layer, widths filled in."""
        pattern = [dataclasses.replace(mixer, width=self.width) for mixer in self.mixer]
        return tuple(pattern[layer % len(pattern)] for layer in range(self.layers))

    def groups(self) -> dict[str, tuple[tuple[MixerConfig, ...], int]]:
        """name -> (the mixers of a group's slots, how often the group repeats): `body`, and `tail` for a remainder."""
        mixers = self.mixers()
        period = min(len(self.mixer), self.layers) if self.scan else self.layers
        repeats, rest = divmod(self.layers, period)
        groups = {'body': (mixers[:period], repeats)}
        return groups | ({'tail': (mixers[-rest:], 1)} if rest else {})

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        places = []
        for group, (mixers, repeats) in self.groups().items():
            places += [((group, f'block_{slot}'), n) for n in range(repeats) for slot in range(len(mixers))]
        return places

    def make_norm(self, name: str) -> nn.Module:
        """A norm of the trunk."""
        return NORMS[self.norm](epsilon=self.norm_epsilon, name=name)

    @property
    def document_align(self) -> int:
        return max(mixer.document_align for mixer in self.mixer)

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        given = {'read_in': read_in, 'input_size': input_size, 'output_size': output_size}
        return dataclasses.replace(self, **{k: v for k, v in given.items() if getattr(self, k) is None})

    def make(self, **flax_kwargs: object) -> 'Decoder':
        return Decoder(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        """A fresh state of all layers, stacked as the parameters are: group -> slot -> [repeat, ...]."""
        dtype = jnp.dtype(self.dtype)

        def stack(mixer: MixerConfig, repeats: int) -> PyTree:
            state = mixer.init_state(batch, capacity, dtype)
            if self.cross is not None:
                state = (state, self.cross.init_state(batch, self.width, dtype))
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (repeats, *leaf.shape)), state)

        states: dict[str, Any] = {
            name: tuple(stack(mixer, repeats) for mixer in mixers) for name, (mixers, repeats) in self.groups().items()
        }
        if self.max_positions is not None:
            states['cursor'] = Cursor.fresh(batch)
        return states

    def flops(self, tokens: int) -> int:
        """Operations of the matrix products of one row's forward pass, cross-attention left out: it has two lengths."""
        ff = 0 if self.feed_forward is None else self.feed_forward.flops(self.width, tokens)
        sizes = [self.output_size, *([self.input_size] if self.read_in == 'linear' else [])]
        hidden = self.ends_hidden
        ends = sum(self.width * size if hidden is None else hidden * (self.width + size) for size in sizes)
        return sum(mixer.flops(tokens) + ff for mixer in self.mixers()) + 2 * tokens * ends

    def describe(self) -> str:
        mixers = ','.join(type(mixer).__name__.removesuffix('Config') for mixer in self.mixer)
        return f'{self.layers} layers of width {self.width}, {mixers}'

    def tiny(self) -> Self:
        """A copy of width 32 and at most one pattern plus one layer, that keeps the choices."""
        layers = min(self.layers, len(self.mixer) + 1)
        return dataclasses.replace(self, width=32, layers=layers, mixer=tuple(mixer.tiny() for mixer in self.mixer))


@struct.dataclass
class Stream:
    """What passes from layer to layer.

    Attributes:
        x: the residual stream.
        first_value: the values of the first layer that shares them; None: no layer does.
        known: whether that layer has been passed.
    """

    x: Float[Array, 'B T D']
    first_value: Float[Array, 'B T H V'] | None = None
    known: Bool[Array, ''] | None = None

    def with_value(self, own: Float[Array, 'B T H V']) -> 'Stream':
        """The stream after a layer that shares its values: the first one's stay."""
        own = own.astype(self.first_value.dtype)
        return self.replace(first_value=jnp.where(self.known, self.first_value, own), known=jnp.ones((), bool))


class Block(nn.Module):
    """One layer: the mixer, perhaps cross-attention, the feed-forward, each added to the stream with its norms."""

    cfg: DecoderConfig
    mixer: MixerConfig

    @nn.compact
    def __call__(self, stream: Stream, context: Context, state: PyTree) -> tuple[Stream, PyTree]:
        x = before = tap(self, 'resid_pre', stream.x)
        cross = self.cfg.cross
        state, source = state if cross is not None and state is not None else (state, None)
        mixer, normed = self.mixer.make(name='mixer'), self._before('mixer', x)
        if self.mixer.shares_first_value:
            stream = stream.with_value(mixer.first_value(normed, context, state))
            context = context.replace(first_value=stream.first_value)
        y, state = mixer(normed, context, state)
        x = tap(self, 'resid_mid', self._add('mixer', 'attn_out', x, y))
        if cross is not None:
            y, source = cross.make(name='cross')(self._before('cross', x), context, source)
            x = self._add('cross', 'cross_out', x, y)
            state = None if state is None else (state, source)
        if self.cfg.feed_forward is not None:
            read = before if self.cfg.block == 'parallel' else x
            y = self.cfg.feed_forward.make(name='feed_forward')(self._before('feed_forward', read))
            x = self._add('feed_forward', 'mlp_out', x, y)
        return stream.replace(x=tap(self, 'resid_post', x)), state

    def _before(self, part: str, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
        """What a part of the block reads of the stream; the site is before the norm."""
        x = tap(self, READS[part], x)
        return x if self.cfg.block == 'post' else self.cfg.make_norm(f'{part}_norm')(x)

    def _add(self, part: str, site: str, x: Float[Array, 'B T D'], y: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
        """The stream with what a part of the block adds; the site is what is added."""
        cfg = self.cfg
        if cfg.block == 'sandwich':
            y = cfg.make_norm(f'{part}_out_norm')(y)
        if cfg.layer_scale is not None:
            init = nn.with_logical_partitioning(nn.initializers.constant(cfg.layer_scale), ('embed',))
            y = y * self.param(f'{part}_scale', init, y.shape[-1:], jnp.float32).astype(y.dtype)[None, None]
        x = x + tap(self, site, y)
        return cfg.make_norm(f'{part}_norm')(x) if cfg.block == 'post' else x


class Group(nn.Module):
    """The slots of a pattern, one block each; what `nn.scan` repeats."""

    cfg: DecoderConfig
    mixers: tuple[MixerConfig, ...]
    repeats: int
    remat: bool

    @nn.compact
    def __call__(self, stream: Stream, context: Context, states: PyTree) -> tuple[Stream, PyTree]:
        # Inside a loop the recomputation cannot be merged with the forward pass; a single repeat is no loop.
        block = nn.remat(Block, prevent_cse=self.repeats == 1) if self.remat else Block
        after = []
        for slot, mixer in enumerate(self.mixers):
            state = None if states is None else states[slot]
            stream, state = block(self.cfg, mixer, name=f'block_{slot}')(stream, context, state)
            after.append(state)
        return stream, None if states is None else tuple(after)


class Decoder(nn.Module):
    """The module of `DecoderConfig`: `outputs, state = model(inputs, context, state)`."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(
        self, inputs: Array, context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B T E'], PyTree | None]:
        cfg = self.cfg
        embedding = self._embedding() if cfg.read_in == 'tokens' else None
        x, after = self._embed(inputs, embedding, context, state)
        stream = self._stream(tap(self, 'embed', x))
        for name, (mixers, repeats) in cfg.groups().items():
            group = nn.scan(
                Group,
                variable_axes=LAYERED,
                split_rngs={'params': True, 'dropout': True},
                in_axes=(nn.broadcast, nn.broadcast if state is None else 0),
                length=repeats,
                metadata_params={nn.PARTITION_NAME: 'layers'},
            )(cfg, mixers, repeats, remat=cfg.remat == 'block' and state is None, name=name)
            stream, states = group(stream, context, None if state is None else state[name])
            if state is not None:
                after[name] = states
        x = stream.x if cfg.block == 'post' else cfg.make_norm('final_norm')(stream.x)
        outputs = self._read_out(x, embedding, context)
        outputs = outputs if cfg.softcap is None else cfg.softcap * jnp.tanh(outputs / cfg.softcap)
        return tap(self, 'logits', outputs), after

    def _embed(
        self, inputs: Array, embedding: Array | None, context: Context, state: PyTree | None
    ) -> tuple[Float[Array, 'B T D'], PyTree | None]:
        """What goes into the layers; the state so far."""
        x, after = self._read_in(inputs, embedding), None if state is None else dict(state)
        if self.cfg.max_positions is not None:
            rows = locate(context, x.shape[:2], None if state is None else state['cursor'])
            x = x + self._positions(rows.positions, x.shape[1]).astype(x.dtype)
            if state is not None:
                after['cursor'] = rows.cursor
        return self.cfg.make_norm('embed_norm')(x) if self.cfg.embed_norm else x, after

    def _stream(self, x: Float[Array, 'B T D']) -> Stream:
        """What goes into the first layer."""
        sharing = [mixer for mixer in self.cfg.mixers() if mixer.shares_first_value]
        if not sharing:
            return Stream(x)
        shape = (*x.shape[:2], sharing[0].heads, sharing[0].values)
        return Stream(x, jnp.zeros(shape, x.dtype), jnp.zeros((), bool))

    def _embedding(self) -> Float[Array, 'E D']:
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0 / self.cfg.width**0.5), ('vocab', 'embed'))
        return self.param('embedding', init, (self.cfg.input_size, self.cfg.width), jnp.float32)

    def _read_in(self, inputs: Array, embedding: Array | None) -> Float[Array, 'B T D']:
        cfg = self.cfg
        if embedding is None:
            x = inputs.astype(cfg.dtype)
            if cfg.ends_hidden is not None:
                x = jax.nn.gelu(Linear((cfg.ends_hidden,), ('features', 'mlp'), name='read_in_hidden')(x))
            axes = ('features' if cfg.ends_hidden is None else 'mlp', 'embed')
            return Linear((cfg.width,), axes, name='read_in')(x)
        # Unit variance at the start, as every block's output has.
        scale = cfg.width**0.5 if cfg.embed_scale is None else cfg.embed_scale
        return embedding.astype(cfg.dtype)[inputs] * scale

    def _positions(self, positions: Array | None, tokens: int) -> Float[Array, '*B T D']:
        limit = self.cfg.max_positions
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('position', 'embed'))
        table = self.param('positions', init, (limit, self.cfg.width), jnp.float32)
        if positions is None:
            if tokens > limit:
                raise ValueError(f'a call of {tokens} tokens does not fit in max_positions={limit}')
            return table[None, :tokens]
        # Past the table outputs are NaN, as past any capacity: a clipped look-up would be silently wrong.
        return table.at[positions].get(mode='fill', fill_value=jnp.nan)

    def _read_out(self, x: Float[Array, 'B T D'], embedding: Array | None, context: Context) -> Float[Array, 'B T E']:
        del context  # for a read-out of pooled tokens
        cfg = self.cfg
        if cfg.tied:
            return jnp.einsum('btd,ed->bte', x, embedding.astype(x.dtype))
        if cfg.ends_hidden is not None:
            x = jax.nn.gelu(Linear((cfg.ends_hidden,), ('embed', 'mlp'), name='read_out_hidden')(x))
        axes = ('embed' if cfg.ends_hidden is None else 'mlp', 'vocab' if cfg.read_in == 'tokens' else 'features')
        return Linear((cfg.output_size,), axes, name='read_out')(x)
