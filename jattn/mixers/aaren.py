"""Aaren (Feng et al. 2024, Attention as an RNN): causal softmax attention with a learned query, one for all tokens.

    s_t = W_q q . W_k x_t / sqrt(K)      o_t = sum_{j<=t} exp(s_j) v_j / sum_{j<=t} exp(s_j)      y = W_o concat_h(o_t)

With one query, all that the past is to the future is a maximum and two sums, so attention is a recurrence. A stretch of
tokens is (m, u), m = max s and u = sum of exp(s - m) [v, 1]; an associative operator joins neighbouring ones,

    (m_a, u_a) o (m_b, u_b) = (m, exp(m_a - m) u_a + exp(m_b - m) u_b)      m = max(m_a, m_b)

and o_t is u_t over its last channel. Once the running maxima m_t are known, u_t is gated linear attention with one key
channel, exp(s_t - m_t), and the decay exp(m_{t-1} - m_t): its chunks, and its kernels, are the default. The weights
depend on the keys alone: a layer keeps running averages by learned importance and cannot look anything up.

The authors count both q and W_q, although their product is one free vector a head; `fold_query` learns that vector. No
code of theirs was found: q starting as a standard normal is our choice. State: m and u. Taps: k, v, gates (s,
[B, T, H]), z, state (u after the call, [B, H, V+1]).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.contract import Context, Cursor, MixerConfig, divide, locate
from jattn.flops import traced_flops
from jattn.nn.linear import Linear
from jattn.ops import gated_linear_attention
from jattn.ops import segments as documents
from jattn.taps import captures, tap
from jattn.typing import Array, Bool, Float, Int32, PyTree, at_least_float32

EMPTY = -1e30  # the maximum over no token: below every score, and differences of two stay finite


@struct.dataclass
class Stretch:
    """A stretch of tokens as attention with one query sees it; the element of the prefix scan.

    Attributes:
        maximum: m [..., H], the largest score; no gradient goes through it, since o does not depend on it.
        sums: u [..., H, V+1], of exp(s - m) v and, last, of exp(s - m).
    """

    maximum: Float[Array, '... H']
    sums: Float[Array, '... H V']


@struct.dataclass
class AarenState:
    """The state of Aaren.

    Attributes:
        cursor: where the rows stand.
        past: the document so far, [B, H] and [B, H, V+1].
    """

    cursor: Cursor
    past: Stretch


@dataclasses.dataclass(frozen=True, kw_only=True)
class AarenConfig(MixerConfig):
    """Aaren.

    Attributes:
        heads: H.
        fold_query: learn W_q q, a vector a head, in place of q and W_q.
        chunk: tokens of a chunk; None: one associative scan over all tokens, as the paper has it.
        implementation: of `ops.gated_linear_attention`, which runs the chunks; None: the fastest that serves.

    >>> cfg = AarenConfig(width=16, heads=2)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).past.sums.shape
    ((1, 5, 16), (1, 2, 9))
    """

    sites: ClassVar[tuple[str, ...]] = ('k', 'v', 'gates', 'z', 'state')

    heads: int = 4
    fold_query: bool = False
    chunk: int | None = 64
    implementation: str | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f'chunk={self.chunk} must be at least 1, or None for one associative scan')
        if self.chunk is None and self.implementation is not None:
            raise ValueError(f'implementation={self.implementation!r} runs chunks, but chunk is None')

    @property
    def channels(self) -> int:
        """K = V, the channels of a head."""
        return divide('width', self.require_width(), 'heads', self.heads)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Aaren(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> AarenState:
        del capacity, dtype  # constant in the length, float32
        empty = Stretch(
            maximum=jnp.full((batch, self.heads), EMPTY, jnp.float32),
            sums=jnp.zeros((batch, self.heads, self.channels + 1), jnp.float32),
        )
        return AarenState(Cursor.fresh(batch), empty)

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, chunk=None if self.chunk is None else 4)


class Aaren(nn.Module):
    """The module of `AarenConfig`."""

    cfg: AarenConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: AarenState | None = None
    ) -> tuple[Float[Array, 'B T D'], AarenState | None]:
        cfg = self.cfg
        split, axes = (cfg.heads, cfg.channels), ('embed', 'heads', 'head')
        k = tap(self, 'k', Linear(split, axes, name='k_proj')(x))
        v = tap(self, 'v', Linear(split, axes, name='v_proj')(x))
        wide = at_least_float32(k)
        scores = jnp.einsum('bthk,hk->bth', k, self._query(k.dtype), preferred_element_type=wide) * cfg.channels**-0.5
        scores = tap(self, 'gates', scores)

        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        past = jax.tree.map(lambda leaf: leaf.astype(wide), cfg.init_state(len(x), 1).past)
        if state is not None:
            past = rows.enter(state.past, jax.tree.map(lambda leaf: leaf[:1], past))
        tokens = single(scores, v.astype(wide), rows.segments)
        if cfg.chunk is None:
            sums, past = scanned(tokens, rows.segments, past)
        else:
            sums, past = chunked(tokens, rows.segments, past, cfg.chunk, cfg.implementation)
        if state is not None or captures(self):
            past = past.replace(sums=tap(self, 'state', past.sums))
        total = sums[..., -1:]
        z = tap(self, 'z', (sums[..., :-1] / jnp.where(total > 0, total, 1)).astype(x.dtype))
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else AarenState(rows.cursor, past)

    def _query(self, dtype: jnp.dtype) -> Float[Array, 'H K']:
        cfg = self.cfg
        shape, axes = ((cfg.heads, cfg.channels), ('heads', 'head')) if cfg.fold_query else ((cfg.width,), ('embed',))
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)
        query = self.param('query', init, shape, jnp.float32).astype(dtype)
        if cfg.fold_query:
            return query
        return Linear((cfg.heads, cfg.channels), ('embed', 'heads', 'head'), name='q_proj')(query)


def single(scores: Float[Array, 'B T H'], v: Float[Array, 'B T H V'], segments: Array | None) -> Stretch:
    """Every token as a stretch of its own; padding as the empty one."""
    maximum = lax.stop_gradient(scores)
    weight = jnp.exp(scores - maximum)[..., None]  # 1, with the gradient of the exponential
    sums = jnp.concatenate([weight * v, weight], axis=-1)
    if segments is None:
        return Stretch(maximum, sums)
    real = (segments > 0)[..., None]
    return Stretch(jnp.where(real, maximum, EMPTY), jnp.where(real[..., None], sums, 0))


def join(earlier: Stretch, later: Stretch) -> Stretch:
    """Two neighbouring stretches as one; associative, and an empty one changes nothing.

    >>> a, b = (Stretch(jnp.array([m]), jnp.array([[v, 1.0]])) for m, v in ((0.0, 4.0), (jnp.log(3.0), 8.0)))
    >>> u = join(a, b).sums[0]
    >>> (u[0] / u[1]).round(4)      # (1 * 4 + 3 * 8) / (1 + 3)
    Array(7., dtype=float32)
    """
    maximum = jnp.maximum(earlier.maximum, later.maximum)
    parts = [jnp.exp(part.maximum - maximum)[..., None] * part.sums for part in (earlier, later)]
    return Stretch(maximum, parts[0] + parts[1])


def scanned(
    tokens: Stretch, segments: Int32[Array, 'B T'] | None, past: Stretch
) -> tuple[Float[Array, 'B T H V'], Stretch]:
    """u_t of every token, and the row after the last: one associative scan over all tokens."""
    whole = jax.tree.map(lambda first, rest: jnp.concatenate([first[:, None], rest], axis=1), past, tokens)
    prefixes = _prefixes(join, whole, _opens(segments, whole.maximum))
    sums = prefixes.sums[:, 1:]
    if segments is not None:
        sums = jnp.where((segments > 0)[..., None, None], sums, 0)
    return sums, jax.tree.map(lambda leaf: leaf[:, -1], prefixes)


def chunked(
    tokens: Stretch, segments: Int32[Array, 'B T'] | None, past: Stretch, chunk: int, implementation: str | None
) -> tuple[Float[Array, 'B T H V'], Stretch]:
    """The same by chunks: the running maxima first, then the sums as gated linear attention with one key channel."""
    maximum = jnp.concatenate([past.maximum[:, None], tokens.maximum], axis=1)
    forms = {'cpu': _step_maxima, 'default': functools.partial(_prefixes, jnp.maximum)}
    maximum = lax.platform_dependent(maximum, _opens(segments, maximum), **forms)
    before, now = maximum[:, :-1], maximum[:, 1:]
    weight = jnp.exp(tokens.maximum - now)[..., None]
    sums, last = gated_linear_attention(
        jnp.ones_like(weight),
        weight,
        tokens.sums,
        before - now,
        initial_state=past.sums[:, :, None],
        return_state=True,
        scale=1.0,
        segments=segments,
        chunk=chunk,
        implementation=implementation,
    )
    return sums, Stretch(now[:, -1], last[:, :, 0])


def _opens(segments: Int32[Array, 'B T'] | None, whole: Float[Array, 'B N H']) -> Bool[Array, 'B N']:
    """Where the past, the first of N = T+1 stretches, must be forgotten."""
    if segments is None:
        return jnp.zeros(whole.shape[:2], bool)
    return jnp.pad(documents.resets(segments), ((0, 0), (1, 0)))


def _prefixes(operator: Callable, stretches: PyTree, opens: Bool[Array, 'B N']) -> PyTree:
    """All stretches up to each, joined along axis 1 from where their document opens."""

    def within_document(earlier: tuple[Array, PyTree], later: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        opened, opens = earlier[0], later[0]
        joined = jax.tree.map(
            lambda own, both: jnp.where(opens.reshape(*opens.shape, *[1] * (own.ndim - 2)), own, both),
            later[1],
            operator(earlier[1], later[1]),
        )
        return opened | opens, joined

    return lax.associative_scan(within_document, (opens, stretches), axis=1)[1]


def _step_maxima(scores: Float[Array, 'B N H'], opens: Bool[Array, 'B N']) -> Float[Array, 'B N H']:
    """`_prefixes` of the maximum step by step: on a CPU as quick, and compiled in a tenth of the time."""

    def step(maximum: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        score, opens = now
        maximum = jnp.where(opens[:, None], score, jnp.maximum(maximum, score))
        return maximum, maximum

    _, maxima = lax.scan(step, scores[:, 0], (jnp.moveaxis(scores, 1, 0), opens.T))
    return jnp.moveaxis(maxima, 0, 1)
