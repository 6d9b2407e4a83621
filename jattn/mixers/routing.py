"""Routing Transformer (Roy et al. 2021): heads that attend within clusters of their content, beside local heads.

    q_t <- LN(q_t), without scale and bias, and k := q
    S_tc = q_t . mu_c                                         mu: C running centroids a head
    z_t = sum_s softmax_s(scale q_t . q_s) v_s                over tokens s that share a cluster with t

Which tokens share a cluster is the `selection`:

    prefix  (default) t joins the cluster of its largest S_tc and sees that cluster's last w members of its document,
            itself included. Ours: strictly causal, and it streams. O((T + C w) (C + w) K) a head.
    top     (published) each centroid takes the w best tokens of the row, put in order; in each list a token sees those
            before it and itself. A token in several lists gets their mean, a token in none 0. Not causal: a later token
            may push an earlier one out of a list. Values never leak, membership does. No state. Documents of one row
            compete for a list's places, but do not see each other.

As published the logits have no 1 / sqrt(K) (`scale`), a token sees itself (`mask_self`; its own logit is |q|^2 = K),
and a relative position, the rank of the key behind the query in the cluster's list, has a learned vector in the logits
and one in the values, shared by the heads (`relative`; ours start at 0). Queries and keys are always one: separate
ones, lists without an order, and strided or hashed ones are not here.

The first heads are local: softmax attention over the last `window` tokens with rotary positions. The authors' blocks
see their own block and the one before, between one and two windows, with relative positions.

Centroids are slow state, updated only in training, once a call, by all real tokens of the whole batch, each in its
argmax cluster: counts N and sums M decay towards those of the batch, mu_c = M_c / N'_c, with the smoothed counts
N'_c = N_tot (N_c + e) / (N_tot + C e). The authors start N at 0 and M at mu_0, which makes the first centroids tens of
times too long, and their counts mix heads; here N starts at 1, and counts are per head. A centroid that no token joins
stays where it is until its count has decayed to e = 1e-5; then it shrinks to 0. As published mu is not normalised, so
the largest S is not always the nearest centroid. The loss `commitment` is the mean over tokens, heads and channels of
(q - mu)^2, mu constant and before the update, counted twice, for q and for k. Metric: cluster_load, the share of the
tokens in each cluster [H, C].

State: the last w keys and values of every cluster in rings, and those of the local heads. A call of one token reads one
ring; a longer one puts the rings before its own tokens. Taps: q [B, T, H, K] before LN or rotation, k (of local heads
alone), v, gates (S [B, T, H, C]; edits move tokens between clusters), z.
"""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, Rows, divide, locate
from jattn.flops import traced_flops
from jattn.nn.cache import KeyValues, RingCache
from jattn.nn.centroids import Centroids, distances, layer_norm
from jattn.nn.clustered_attention import (
    ClusterRings,
    Relative,
    attend_ranks,
    document_ids,
    prefix_attention,
    stream,
    top_attention,
)
from jattn.nn.linear import Linear
from jattn.nn.rotary import rotate
from jattn.nn.side_channels import MIXER_STATE, sow_loss, sow_metric, token_mean
from jattn.nn.windowed_attention import windowed_attention
from jattn.taps import tap
from jattn.typing import Array, Float

SELECTIONS = ('prefix', 'top')


@struct.dataclass
class RoutingState:
    """The state of a routing mixer with prefix selection.

    Attributes:
        cursor: where the rows stand.
        rings: the last w members of every cluster.
        local: of the local heads; None without any.
    """

    cursor: Cursor
    rings: ClusterRings
    local: KeyValues | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingConfig(MixerConfig):
    """Routing attention beside local attention.

    Attributes:
        heads: local and routing heads.
        local_heads: the first so many are local; 0: none.
        window: of the local heads, the query included.
        clusters: C, centroids of a routing head; about sqrt(T).
        members: w, what a token sees of its cluster (prefix) or a centroid takes (top); about T / C.
        selection: 'prefix' or 'top'.
        mask_self: a token sees itself only where it would see nobody.
        scale: of the logits of the routing heads; None: 1, as published.
        relative: whether logits and values know the rank in the cluster.
        decay: of the centroids' counts and sums.
        rotary_base: of the local heads; None: no positions.

    >>> import jax
    >>> cfg = RoutingConfig(width=32, clusters=4, members=8)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 32))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, sorted(variables), cfg.init_state(batch=1, capacity=1000).rings.k.shape
    ((1, 5, 32), ['mixer_state', 'params'], (1, 2, 4, 8, 8))
    """

    heads: int = 4
    local_heads: int = 2
    window: int = 32
    clusters: int = 8
    members: int = 32
    selection: str = 'prefix'
    mask_self: bool = False
    scale: float | None = None
    relative: bool = True
    decay: float = 0.999
    rotary_base: float | None = 10_000.0

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f'selection={self.selection!r} must be one of {", ".join(SELECTIONS)}')
        if not 0 <= self.local_heads < self.heads:
            raise ValueError(f'local_heads={self.local_heads} must be at least 0 and below heads={self.heads}')
        for name in ('window', 'clusters', 'members'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        if not 0 <= self.decay <= 1:
            raise ValueError(f'decay={self.decay} must be between 0 and 1')
        if self.width is not None and self.local_heads and self.rotary_base is not None and self.channels % 2:
            raise ValueError(f'head_dim={self.channels} must be even for rotary positions (rotary_base=None: none)')

    @property
    def causal(self) -> bool:
        return self.selection == 'prefix'

    @property
    def sites(self) -> tuple[str, ...]:
        return ('q', 'k', 'v', 'gates', 'z') if self.local_heads else ('q', 'v', 'gates', 'z')

    @property
    def channels(self) -> int:
        """K, the channels of a head."""
        return divide('width', self.require_width(), 'heads', self.heads)

    @property
    def routing_heads(self) -> int:
        """How many heads route."""
        return self.heads - self.local_heads

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Routing(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> RoutingState:
        del capacity  # constant in the length
        if not self.causal:
            raise ValueError("routing: selection='top' is not causal and has no state")
        rings = (batch, self.routing_heads, self.clusters, self.members, self.channels)
        local = (self.window, self.local_heads, self.channels, self.channels, dtype)
        return RoutingState(
            cursor=Cursor.fresh(batch),
            rings=ClusterRings.empty(rings, dtype),
            local=RingCache(self.window).init(batch, *local) if self.local_heads else None,
        )

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, window=4, clusters=min(self.clusters, 3), members=4)


class Routing(nn.Module):
    """The module of `RoutingConfig`."""

    cfg: RoutingConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: RoutingState | None = None
    ) -> tuple[Float[Array, 'B T D'], RoutingState | None]:
        cfg, axes = self.cfg, ('embed', 'heads', 'head')
        q, v = (Linear((cfg.heads, cfg.channels), axes, name=f'{name}_proj')(x) for name in 'qv')
        q, v = tap(self, 'q', q), tap(self, 'v', v)
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)

        z, of_local = [], None
        if cfg.local_heads:
            k = tap(self, 'k', Linear((cfg.local_heads, cfg.channels), axes, name='k_proj')(x))
            own = (part[:, :, : cfg.local_heads] for part in (q, k, v))
            before = None if state is None else state.local
            of_local, view = RingCache(cfg.window).extend(before, *own, rows, self._rotate)
            z.append(windowed_attention(view, cfg.window, view.q, None))
        routed, state = self._route(q[:, :, cfg.local_heads :], v[:, :, cfg.local_heads :], rows, context, state)
        z = tap(self, 'z', jnp.concatenate([*z, routed], axis=2))
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else state.replace(cursor=rows.cursor, local=of_local)

    def _rotate(self, x: Array, positions: Array) -> Array:
        return x if self.cfg.rotary_base is None else rotate(x, positions, self.cfg.rotary_base)

    def _route(
        self,
        q: Float[Array, 'B T H K'],
        v: Float[Array, 'B T H K'],
        rows: Rows,
        context: Context,
        state: RoutingState | None,
    ) -> tuple[Float[Array, 'B T H K'], RoutingState | None]:
        """The outputs of the routing heads; the state with their rings alone renewed."""
        cfg = self.cfg
        wide = layer_norm(q)
        scores = self._scores(wide, context)
        segments = jnp.ones(q.shape[:2], jnp.int32) if rows.segments is None else rows.segments
        attend = functools.partial(
            attend_ranks, members=cfg.members, relative=self._relative(), scale=cfg.scale, mask_self=cfg.mask_self
        )
        # Heads second, so that a head's tokens are the rows of a matrix.
        q, v, scores = (jnp.moveaxis(part, 2, 1) for part in (wide.astype(v.dtype), v, scores))
        if cfg.selection == 'top':
            z = top_attention(q, v, scores, segments, cfg.members, attend)
        else:
            cluster = jnp.argmax(scores, axis=-1).astype(jnp.int32)
            if state is None:
                ids = document_ids(segments, jnp.ones(len(q), jnp.int32), cluster, cfg.clusters)
                z = prefix_attention(q, v, cluster, ids, cfg.clusters, cfg.members, attend)
            else:
                z, rings = stream(q, v, cluster, rows, state.cursor, state.rings, attend)
                state = state.replace(rings=rings)
        return jnp.moveaxis(z, 1, 2), state

    def _scores(self, q: Float[Array, 'B T H K'], context: Context) -> Float[Array, 'B T H C']:
        """How well every token fits every centroid; in training moves the centroids afterwards."""
        cfg = self.cfg
        shape = (cfg.routing_heads, cfg.clusters, cfg.channels)
        named = lambda init, *axes: nn.with_logical_partitioning(init, ('heads', 'clusters', *axes))
        counts = self.variable(MIXER_STATE, 'counts', named(jnp.ones), shape[:2], jnp.float32)
        drawn = lambda: layer_norm(jax.random.normal(self.make_rng('params'), shape))
        sums = self.variable(MIXER_STATE, 'sums', named(drawn, 'head'))
        centroids = Centroids(counts.value, sums.value)
        mu = jax.lax.stop_gradient(centroids.means()).astype(q.dtype)
        scores = tap(self, 'gates', jnp.einsum('bthk,hck->bthc', q, mu))

        cluster = jnp.argmax(scores, axis=-1)
        sow_loss(self, 'commitment', 2 * jnp.mean(token_mean(distances(q, mu, cluster), context)))
        joined = jax.nn.one_hot(cluster, cfg.clusters, dtype=jnp.float32)
        sow_metric(self, 'cluster_load', token_mean(joined, context))
        if context.train and self.is_mutable_collection(MIXER_STATE) and not self.is_initializing():
            moved = centroids.moved(jax.lax.stop_gradient(q), joined, cfg.decay, context)
            counts.value, sums.value = moved.counts, moved.sums
        return scores

    def _relative(self) -> Relative | None:
        if not self.cfg.relative:
            return None
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('ranks', 'head'))
        shape = (self.cfg.members, self.cfg.channels)
        return Relative(*(self.param(f'rank_{name}', zeros, shape, jnp.float32) for name in 'kv'))
