"""Scattered linear attention (ScatterFormer): linear attention inside windows of any size that share one flat row.

    y_i = phi(q_i) KV_m / (phi(q_i) . s_m + 1e-6)    KV_m = sum_{j in m} phi(k_j) v_j^T    s_m = sum_{j in m} phi(k_j)

m is the window of i, phi a ReLU; both sides are seen, q.k is not scaled, there are no positions. A row is a scene: its
voxels are sorted by window, `context.segments` are the windows (0: padding), so no batch index can be forgotten.

The paper aligns every window to chunks of g rows, which takes a bound on the number of windows and up to g-1 empty rows
for each. Here a chunk is any g rows. What crosses its borders is one window at the front and one at the back: their
sums are taken by chunk, added up over the chunks of a window, and handed back. A window that begins and ends inside a
chunk is read by its g x g scores. The cost does not know of windows: no bound, no empty rows, N / g matrices of K x V.

`cross_window` lets neighbouring windows meet, in place of shifting them: four groups of channels of the output u get a
depthwise convolution over 3x3x3 voxels, over window+1 along x, over window+1 along y, and nothing,

    y = u + [conv_zyx(u_1), conv_x(u_2), conv_y(u_3), u_4]        read and written where there are voxels only

on a dense grid, from `context.coordinates`. The authors put it behind the residual: h = BN(x + SLA(BN(x))), then
h + [...] of h, so that h, not x + SLA, is what the residual stream goes on with. A mixer is what its trunk adds to x,
so here it works on what the attention hands over, and x stays; the fourth group is doubled, as theirs is. Voxels off
the grid read NaN. Their output projection has a bias, ours only with `use_bias`: without, z = 0 is y = 0.

Not causal, no state. Taps: q, k, v before the ReLU, z.
"""

import dataclasses
import functools
from typing import ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.contract import Context, MixerConfig, divide, locate
from jattn.nn.linear import Linear
from jattn.ops import segments as documents
from jattn.taps import tap
from jattn.typing import Array, Bool, Float, Int32, Key, PyTree, at_least_float32, axis_sizes

EPSILON = 1e-6
GROUPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScatteredLinearConfig(MixerConfig):
    """Scattered linear attention.

    Attributes:
        heads: H.
        chunk: g, rows of a chunk; no effect on the result.
        cross_window: whether convolutions let neighbouring windows meet.
        window: w, voxels of a window's side, an even number: convolutions reach w / 2 along x and y.
        grid: the scene's voxels along z, y and x, for the convolutions.
        use_bias: of the output projection.

    >>> cfg = ScatteredLinearConfig(width=16, heads=2)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> windows = Context(segments=jnp.array([[1, 1, 4, 4, 0]]))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x, windows)
    >>> y.shape, bool(jnp.all(y[0, 4] == 0))
    ((1, 5, 16), True)
    """

    causal: ClassVar[bool] = False
    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'z')

    heads: int = 4
    chunk: int = 32
    cross_window: bool = False
    window: int = 12
    grid: tuple[int, int, int] | None = None
    use_bias: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f'chunk={self.chunk} must be at least 1')
        if not self.cross_window:
            return
        if self.window < 2 or self.window % 2:
            raise ValueError(f'window={self.window} must be even: a convolution of window+1 voxels has a middle')
        if self.grid is None or len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f'grid={self.grid} must be the voxels along z, y and x with cross_window=True')
        if self.width is not None:
            divide('width', self.width, 'groups', GROUPS)

    @property
    def channels(self) -> int:
        """K = V, the channels of a head."""
        return divide('width', self.require_width(), 'heads', self.heads)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return ScatteredLinear(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> NoReturn:
        raise ValueError('scattered linear attention sees both sides and has no state')

    def flops(self, tokens: int) -> int:
        width, channels, chunk = self.require_width(), self.channels, min(self.chunk, tokens)
        rows = -(-tokens // chunk) * chunk
        border = 4 * 2 * rows * width * (channels + 1)  # sums of two windows a chunk, and reading them
        inside = 2 * rows * chunk * (2 * width + self.heads)
        reach = 27 + 2 * (self.window + 1) if self.cross_window else 0
        return 8 * tokens * width**2 + border + inside + 2 * tokens * reach * width // GROUPS

    def tiny(self) -> Self:
        grid, window = ((2, 8, 8), 4) if self.cross_window else (self.grid, self.window)
        return dataclasses.replace(self, width=32, chunk=4, grid=grid, window=window)

    def example_context(self, key: Key, batch: int, tokens: int) -> Context:
        """Voxels drawn from the grid, sorted by window."""
        z, y, x = self.grid or (2, 8, 8)
        side = self.window if self.cross_window else 4

        def scene(key: Key) -> tuple[Int32[Array, 'T'], Int32[Array, 'T 3']]:
            place = jax.random.permutation(key, z * y * x)[jnp.arange(tokens) % (z * y * x)]
            at = jnp.stack([place // (y * x), place // x % y, place % x], axis=-1)
            window = 1 + at[:, 1] // side * -(-x // side) + at[:, 2] // side
            order = jnp.argsort(window)
            return window[order], at[order]

        segments, coordinates = jax.vmap(scene)(jax.random.split(key, batch))
        return Context(segments=segments, coordinates=coordinates)


class ScatteredLinear(nn.Module):
    """The module of `ScatteredLinearConfig`."""

    cfg: ScatteredLinearConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B T D'], None]:
        cfg = self.cfg
        if state is not None:
            raise ValueError('scattered linear attention sees both sides and has no state')
        segments = locate(context, x.shape[:2]).segments
        segments = jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments
        split, axes = (cfg.heads, cfg.channels), ('embed', 'heads', 'head')
        q, k, v = (tap(self, name, Linear(split, axes, name=f'{name}_proj')(x)) for name in 'qkv')
        z = tap(self, 'z', scattered_attention(nn.relu(q), nn.relu(k), v, segments, chunk=cfg.chunk))
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), cfg.use_bias, name='o_proj')(z)
        if cfg.cross_window:
            real = (segments > 0) if context.segments is not None else None
            y = CrossWindow(cfg.grid, cfg.window, name='cross_window')(y, context.coordinates, real)
        return y, None


def scattered_reference(
    q: Float[Array, 'B T H K'], k: Float[Array, 'B T H K'], v: Float[Array, 'B T H V'], segments: Int32[Array, 'B T']
) -> Float[Array, 'B T H V']:
    """The sums of every window by `segment_sum`, an outer product a token in memory; q and k behind phi."""
    number = jnp.where(segments > 0, jnp.cumsum(documents.openings(segments), axis=1), 0)
    add = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=len(ids) + 1)[ids])
    sums = add(k[..., :, None] * with_ones(v)[..., None, :], number)
    z = jnp.einsum('bthk,bthkv->bthv', q, sums)
    return jnp.where((segments > 0)[..., None, None], z[..., :-1] / (z[..., -1:] + EPSILON), 0)


def scattered_attention(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    segments: Int32[Array, 'B T'],
    *,
    chunk: int = 32,
) -> Float[Array, 'B T H V']:
    """Linear attention of both sides inside windows, by chunks, sums in float32 at least; q and k behind phi.

    Args:
        q: queries.
        k: keys.
        v: values.
        segments: window ids, which never decrease among the real rows; 0 is padding, which reads 0.
        chunk: rows of a chunk.

    Returns:
        The outputs in v's dtype.

    >>> q = k = jnp.ones((1, 3, 1, 1))
    >>> v = jnp.array([2.0, 4.0, 8.0]).reshape(1, 3, 1, 1)
    >>> (100 * scattered_attention(q, k, v, jnp.array([[1, 1, 2]]))).round().ravel().tolist()
    [300.0, 300.0, 800.0]
    """
    sizes = axis_sizes(
        'scattered_attention', q=(q, 'B T H K'), k=(k, 'B T H K'), v=(v, 'B T H V'), segments=(segments, 'B T')
    )
    tokens, chunk = sizes['T'], min(chunk, sizes['T'])
    count, wide = -(-tokens // chunk), at_least_float32(q, k, v)

    def cut(x: Array) -> Array:
        """[B, T, ...] to [B, N, C, ...], filled up with padding."""
        x = jnp.pad(x, ((0, 0), (0, count * chunk - tokens), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(len(x), count, chunk, *x.shape[2:])

    qs, ks, vs, ids = cut(q), cut(k), cut(with_ones(v)), cut(segments)
    at = borders(ids)
    precision = lax.Precision.DEFAULT if v.dtype.itemsize == 2 else lax.Precision.HIGHEST
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=wide)
    # The window at the front (which may fill the chunk) and another one at the back: two sums a chunk.
    front, back = (product('bnchk,bnchv->bnhkv', ks * part, vs) for part in masks(ks.dtype, at.front, at.back))
    add = jax.vmap(lambda x, home: jax.ops.segment_sum(x, home, num_segments=count + 1))
    back = add(front, at.home).at[:, :count].add(back)  # a window at the back begins there: that is its home
    front = jnp.take_along_axis(back, at.home[:, :, None, None, None], axis=1)
    reads = zip(masks(wide, at.front & at.crosses, at.back), (front, back[:, :count]))
    z = sum(product('bnchk,bnhkv->bnchv', qs * part, sums) for part, sums in reads)
    scores = product('bnchk,bnshk->bnhcs', qs, ks)
    inside = (ids[..., :, None] == ids[..., None, :]) & at.inside[..., :, None]
    z = z + product('bnhcs,bnshv->bnchv', jnp.where(inside[:, :, None], scores, 0), vs.astype(wide))
    z = z.reshape(len(q), count * chunk, *z.shape[3:])[:, :tokens]
    return (z[..., :-1] / (z[..., -1:] + EPSILON)).astype(v.dtype)


def with_ones(v: Float[Array, '... V']) -> Float[Array, '... V+1']:
    """Values with a last channel of 1, whose sum is the denominator."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)


def masks(dtype: jnp.dtype, *parts: Bool[Array, 'B N C']) -> list[Float[Array, 'B N C 1 1']]:
    """Rows to keep, as factors of [B, N, C, H, K]."""
    return [part[..., None, None].astype(dtype) for part in parts]


@struct.dataclass
class Borders:
    """How the windows of a row lie across its N chunks.

    Attributes:
        front, back: [B, N, C], the rows of the chunk's first window, and of its last where that is another one.
        crosses: [B, N, 1], whether the first window is the last one of some chunk: its rows are read from a sum.
        home: [B, N], the chunk of that sum, the first whose last window it is; N where it does not cross.
        inside: [B, N, C], the rows whose window begins and ends in the chunk, with another one behind it.
    """

    front: Bool[Array, 'B N C']
    back: Bool[Array, 'B N C']
    crosses: Bool[Array, 'B N 1']
    home: Int32[Array, 'B N']
    inside: Bool[Array, 'B N C']


def borders(ids: Int32[Array, 'B N C']) -> Borders:
    """Reads them from the window ids, which never decrease but for padding (0) anywhere.

    >>> at = borders(jnp.array([[[1, 2, 3], [3, 3, 3], [3, 4, 0]]]))
    >>> at.home[0].tolist(), at.crosses[0, :, 0].tolist(), at.inside[0].astype(int).tolist()
    ([3, 0, 0], [False, True, True], [[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    """
    real = ids > 0
    first = jnp.min(jnp.where(real, ids, jnp.iinfo(ids.dtype).max), axis=-1)
    last = lax.cummax(jnp.max(ids, axis=-1), axis=1)  # of all rows so far: a chunk of padding has that before it
    home = jax.vmap(jnp.searchsorted)(last, first)
    crosses = jnp.take_along_axis(last, jnp.minimum(home, last.shape[1] - 1), axis=1) == first
    front = real & (ids == first[..., None])
    back = real & (ids == last[..., None]) & (first != last)[..., None]
    crosses = crosses[..., None]
    return Borders(
        front, back, crosses, jnp.where(crosses[..., 0], home, last.shape[1]), real & ~(front & crosses) & ~back
    )


class CrossWindow(nn.Module):
    """u + [conv_zyx(u_1), conv_x(u_2), conv_y(u_3), u_4] on the voxels of a scene; no biases.

    Attributes:
        grid: voxels along z, y and x.
        window: w; convolutions along x and y are over w + 1.
    """

    grid: tuple[int, int, int]
    window: int

    @nn.compact
    def __call__(
        self, u: Float[Array, 'B T D'], coordinates: Int32[Array, 'B T 3'] | None, real: Bool[Array, 'B T'] | None
    ) -> Float[Array, 'B T D']:
        if coordinates is None:
            raise ValueError('cross_window=True reads context.coordinates [B, T, 3], but there are none')
        axis_sizes('cross_window', u=(u, 'B T D'), coordinates=(coordinates, 'B T 3'))
        features = divide('width', u.shape[-1], 'groups', GROUPS)
        groups = jnp.split(u, GROUPS, axis=-1)
        long = self.window + 1
        for i, (name, taps) in enumerate([('zyx', (3, 3, 3)), ('along_x', (1, 1, long)), ('along_y', (1, long, 1))]):
            init = nn.initializers.normal((taps[0] * taps[1] * taps[2]) ** -0.5)
            boxed = nn.with_logical_partitioning(init, ('tap_z', 'tap_y', 'tap_x', 'group'))
            kernel = self.param(name, boxed, (*taps, features), jnp.float32).astype(u.dtype)
            groups[i] = voxel_convolution(groups[i], kernel, coordinates, real, self.grid)
        return u + jnp.concatenate(groups, axis=-1)


def voxel_convolution(
    u: Float[Array, 'B T F'],
    kernel: Float[Array, 'Z Y X F'],
    coordinates: Int32[Array, 'B T 3'],
    real: Bool[Array, 'B T'] | None,
    grid: tuple[int, int, int],
) -> Float[Array, 'B T F']:
    """A depthwise convolution (as networks have it: not flipped) from the voxels that there are to the same ones.

    Args:
        u: features of the voxels.
        kernel: of odd sizes, the middle one a voxel's own.
        coordinates: (z, y, x), no two real ones alike. Real voxels off the grid read NaN and are read by none.
        real: which rows are voxels; None: all. The others read 0.
        grid: voxels along z, y and x.

    >>> at = jnp.array([[[0, 0, 0], [0, 0, 2], [0, 0, 3]]])
    >>> u = jnp.array([[[1.0], [10.0], [100.0]]])
    >>> voxel_convolution(u, jnp.ones((1, 1, 3, 1)), at, None, (1, 1, 4)).ravel().tolist()
    [1.0, 110.0, 110.0]
    """
    taps, (tokens, voxels) = kernel.shape[:3], (u.shape[1], grid[0] * grid[1] * grid[2])
    real = jnp.ones(u.shape[:2], bool) if real is None else real
    offsets = np.indices(taps).reshape(3, -1).T - np.array(taps) // 2

    def places(at: Int32[Array, '*T 3']) -> tuple[Int32[Array, '*T'], Bool[Array, '*T']]:
        """The number of a voxel of the grid, and whether it is on it."""
        size = jnp.array(grid).reshape(*[1] * (at.ndim - 1), 3)
        on_grid = jnp.all((at >= 0) & (at < size), axis=-1)
        return (at[..., 0] * grid[1] + at[..., 1]) * grid[2] + at[..., 2], on_grid

    def scene(u: Float[Array, 'T F'], at: Int32[Array, 'T 3'], real: Bool[Array, 'T']) -> Float[Array, 'T F']:
        """Reads the neighbours that there are; a table says which row stands where."""
        own, on_grid = places(at)
        rows = jnp.full(voxels, tokens).at[jnp.where(on_grid & real, own, voxels)].set(jnp.arange(tokens), mode='drop')
        near, inside = places(at[:, None] + offsets[None])
        near = jnp.where(inside, rows[jnp.where(inside, near, 0)], tokens)
        neighbours = u.at[near].get(mode='fill', fill_value=0)
        return jnp.where(
            on_grid[:, None], jnp.einsum('tkf,kf->tf', neighbours, kernel.reshape(-1, u.shape[-1])), jnp.nan
        )

    y = jax.vmap(scene)(u, coordinates, real)
    return jnp.where(real[..., None], y, 0)
