"""What queries see where every one of them, head by head, chooses blocks of the document; and their attention.

A few queries are handled at a time, so that memory does not grow with the call. Rotary scores depend on distances
alone: where a block shall seem to stand farther or nearer than it does, the query is turned to that distance from its
first token, once a block, and the block's keys by their place in it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.nn.cache import Rotate
from jattn.ops.softmax_attention.blocks import block_attend, block_scores
from jattn.taps import PATTERNS, tap, wants_patterns
from jattn.typing import Array, Bool, Float, Int32, PyTree

BUDGET = 2**22  # numbers that the queries handled at a time may gather


@struct.dataclass
class FewQueries:
    """What a few queries see, every head of them other keys; S = N C.

    Attributes:
        q: [B, T, H, N, K], the query as each block sees it.
        k, v: [B, T, H, N, C, K] and [B, T, H, N, C, V], keys rotated by their place in the block.
        visible: [B, T, H, N, C].
    """

    q: Float[Array, 'B T H N K']
    k: Float[Array, 'B T H N C K']
    v: Float[Array, 'B T H N C V']
    visible: Bool[Array, 'B T H N C']


@struct.dataclass
class BlockView:
    """What the queries of a call see where each chooses N blocks of its own, in the order of time, the own block last.

    Attributes:
        q: [B, T, H, K], not rotated.
        k, v: [B, S, G, K] and [B, S, G, V], not rotated.
        chosen: [B, T, H, N], the numbers of the blocks in their document; -1: none.
        starts: [B, T, H, N], where each begins in k.
        seen: [B, T, H, N], how many of its tokens the query sees.
        distance: [B, T, H, N], how far before the query its first token shall seem to stand.
        overflow: [B, T], queries past the capacity. None where there is no bound.
        size, rotate: static, C and the rotation.
    """

    q: Float[Array, 'B T H K']
    k: Float[Array, 'B S G K']
    v: Float[Array, 'B S G V']
    chosen: Int32[Array, 'B T H N']
    starts: Int32[Array, 'B T H N']
    seen: Int32[Array, 'B T H N']
    distance: Int32[Array, 'B T H N']
    overflow: Bool[Array, 'B T'] | None
    size: int = struct.field(pytree_node=False)
    rotate: Rotate = struct.field(pytree_node=False)

    def read(self) -> FewQueries:
        """The keys and values of all queries at once."""
        offsets = jnp.arange(self.size)

        def of_token_and_head(q: Array, k: Array, distance: Array) -> tuple[Array, Array]:
            """[B, N, K], [B, N, C, K] and [B, N]: to `rotate` now the blocks, now their keys are the tokens."""
            q = self.rotate(q[:, :, None], distance)[:, :, 0]
            return q, self.rotate(k.swapaxes(1, 2), offsets[None]).swapaxes(1, 2)

        q = jnp.broadcast_to(self.q[:, :, :, None], (*self.distance.shape, self.q.shape[-1]))
        k, v = (take_blocks(x, self.starts, self.size) for x in (self.k, self.v))
        q, k = jax.vmap(jax.vmap(of_token_and_head, 1, 1), 1, 1)(q, k, self.distance)
        return FewQueries(
            q=q,
            k=k,
            v=v,
            visible=offsets.reshape(1, 1, 1, 1, -1) < self.seen[..., None],
        )

    def map(self, attend: Callable[[FewQueries], Float[Array, 'B T H V']]) -> Float[Array, 'B T H V']:
        """`attend` of a few queries after the other, as many as memory is allowed for; gradients read them again."""

        def few(part: tuple[Array, ...]) -> Float[Array, 'B T H V']:
            q, chosen, starts, seen, distance = part
            view = self.replace(q=q, chosen=chosen, starts=starts, seen=seen, distance=distance)
            return attend(view.read())

        each = self.chosen[0, 0].size * self.size * (self.k.shape[-1] + self.v.shape[-1])
        return map_queries(few, (self.q, self.chosen, self.starts, self.seen, self.distance), each)


def attend_blocks(
    module: nn.Module, view: BlockView, pattern: Callable[[Array, Array], Array], softcap: float | None = None
) -> Float[Array, 'B T H V']:
    """The heads of a softmax mixer, whose softmax is `pattern(scores, visible)`. Taps: scores, pattern [B, H, T, N C]
    and chosen, the numbers of the blocks [B, T, H, N]."""
    tap(module, 'chosen', view.chosen, PATTERNS)
    if not wants_patterns(module):

        def attend(few: FewQueries) -> Float[Array, 'B T H V']:
            scores = block_scores(few.q, few.k, few.visible, softcap=softcap)
            return block_attend(pattern(scores, few.visible), few.v)

        return view.map(attend)

    def tapped(site: str, x: Float[Array, 'B H T N C']) -> Float[Array, 'B H T N C']:
        return tap(module, site, x.reshape(*x.shape[:3], -1), PATTERNS).reshape(x.shape)

    few = view.read()
    scores = tapped('scores', block_scores(few.q, few.k, few.visible, softcap=softcap))
    return block_attend(tapped('pattern', pattern(scores, few.visible)), few.v)


def take_blocks(x: Float[Array, 'B S G K'], starts: Int32[Array, 'B T H N'], size: int) -> Array:
    """Slices of `size` tokens, [B, T, H, N, C, K]; head h reads key head h // (H // G)."""

    def of_head(x: Float[Array, 'S K'], starts: Int32[Array, 'T R N']) -> Float[Array, 'T R N C K']:
        cut = jax.vmap(lambda start: lax.dynamic_slice_in_dim(x, start, size))(starts.reshape(-1))
        return cut.reshape(*starts.shape, *cut.shape[1:])

    grouped = starts.reshape(*starts.shape[:2], x.shape[2], -1, starts.shape[3])
    blocks = jax.vmap(jax.vmap(of_head, 1, 1))(x, grouped)
    return blocks.reshape(*starts.shape, *blocks.shape[-2:])


def map_queries(function: Callable[[PyTree], PyTree], arrays: PyTree, each: int) -> PyTree:
    """`function` of arrays [B, T, ...], a few tokens after the other; `each` is what one token of a row takes."""
    batch, tokens = jax.tree.leaves(arrays)[0].shape[:2]
    few = max(1, min(tokens, BUDGET // (batch * each)))
    if few == tokens:
        return function(arrays)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -tokens % few), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, -1, few, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:])[:, :tokens]

    return jax.tree.map(join, lax.map(jax.checkpoint(function), jax.tree.map(cut, arrays)))
