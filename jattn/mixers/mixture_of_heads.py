"""MoH (Jin et al. 2024, Multi-Head Attention as Mixture-of-Head Attention): softmax attention that routes over heads.

    y_t = W_o concat_h g_th o_th         o = the heads of `SoftmaxConfig`, under any mask

The first Hs heads are shared, always on; of the E others each token takes the K of the highest probability. With
(a1, a2) = softmax(W_h x), s = softmax(W_s x), p = softmax(W_r x), of the mixer's input x (the block has normalised it):

    gates          shared i        routed i in the top K          of the others 0
    renormalised   2 a1 Hs s_i     2 a2 K p_i / sum_topK p_j      the authors' code: uniform routers give 1 everywhere
    paper          a1 s_i          a2 p_i                         the printed equation
    query_norm     1               1                              p = softmax(|q_i| / std_j |q_j|), no parameters

What cannot choose has no router: a1, a2 are left out (with their 2) where heads are all shared or all routed, s where
one head is shared, p where one is routed. query_norm tunes a trained attention further (`from_softmax`): its gate is 1
or 0, its gradient that of p on all routed heads (straight through; the authors published inference only); q is taken
before rotation, the deviation has n - 1. Renormalised with K=1 the gate of the chosen head is constant, so that W_r
learns by the balance loss alone.

Balance loss, `load_balance`: E sum_i P_i f_i, with P the mean of p and f the share of tokens that took head i, over the
real tokens of the whole batch; K at perfect balance, E where all take the same K heads. Its gradient goes through P.

As in the authors' code all heads are computed, then weighed: nothing is saved, and `flops` says so. Keys and values of
heads that no token takes must be there anyway, since a later token may take them: the state is that of softmax. Taps:
those of softmax, z after the gates, and gates [B, T, H]. Metric: head_load, f.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.softmax import Softmax, SoftmaxConfig
from jattn.nn.linear import Linear
from jattn.nn.side_channels import sow_loss, sow_metric, token_mean
from jattn.taps import tap
from jattn.typing import Array, Float, at_least_float32

GATES = ('renormalised', 'paper', 'query_norm')
EPSILON = 1e-6  # keeps the gradient finite at a query of 0, and where all norms are one


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfHeadsConfig(SoftmaxConfig):
    """MoH: the fields of softmax attention, and

    Attributes:
        heads: H; heads - shared are routed.
        shared: Hs, the first heads, which every token takes.
        active: K, the routed heads that a token takes; 0 where all heads are shared.
        gates: 'renormalised', 'paper' or 'query_norm'.

    >>> cfg = MixtureOfHeadsConfig(width=32, heads=8, shared=2, active=4)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 32))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.routed, sorted(variables['params'])[3:]
    ((1, 5, 32), 6, ['routed_router', 'shared_router', 'stage_router', 'v_proj'])
    """

    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'gates', 'z')

    heads: int = 8
    shared: int = 2
    active: int = 4
    gates: str = 'renormalised'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates not in GATES:
            raise ValueError(f'gates={self.gates!r} must be one of {", ".join(GATES)}')
        if not 0 <= self.shared <= self.heads:
            raise ValueError(f'shared={self.shared} must be between 0 and heads={self.heads}')
        if not min(self.routed, 1) <= self.active <= self.routed:
            least = '0, since all heads are shared' if not self.routed else f'between 1 and {self.routed}'
            raise ValueError(f'active={self.active} of heads - shared = {self.routed} routed heads must be {least}')
        if self.gates == 'query_norm' and self.routed == 1:
            raise ValueError("gates='query_norm' compares norms: heads - shared = 1 must be 0 or at least 2")
        if self.gates == 'query_norm' and self.qk_norm:
            raise ValueError("gates='query_norm' routes by the norms of queries, but qk_norm=True makes them alike")

    @property
    def routed(self) -> int:
        """E, the routed heads."""
        return self.heads - self.shared

    @property
    def routers(self) -> dict[str, int]:
        """The routers that there are, and over how many terms each decides."""
        if self.gates == 'query_norm':
            return {}
        terms = {'shared': self.shared, 'routed': self.routed, 'stage': bool(self.shared) + bool(self.routed)}
        return {name: count for name, count in terms.items() if count > 1}

    def make(self, **flax_kwargs: object) -> nn.Module:
        return MixtureOfHeads(self, **flax_kwargs)

    def flops(self, tokens: int) -> int:
        return super().flops(tokens) + 2 * tokens * self.require_width() * sum(self.routers.values())


def from_softmax(cfg: SoftmaxConfig, shared: int, active: int, gates: str = 'query_norm') -> MixtureOfHeadsConfig:
    """MoH that goes on from a trained attention: its parameters are those of `cfg` as they are, and the routers if any.

    >>> from_softmax(SoftmaxConfig(heads=8, window=64), shared=4, active=2).gates
    'query_norm'
    """
    fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(SoftmaxConfig)}
    return MixtureOfHeadsConfig(**fields, shared=shared, active=active, gates=gates)


class MixtureOfHeads(Softmax):
    """The module of `MixtureOfHeadsConfig`."""

    cfg: MixtureOfHeadsConfig

    def _weigh(self, z: Float[Array, 'B T H V'], x: Array, q: Array, context: Context) -> Float[Array, 'B T H V']:
        gates = self._query_gates(q, context) if self.cfg.gates == 'query_norm' else self._router_gates(x, context)
        gates = tap(self, 'gates', gates)
        return (z * gates[..., None]).astype(z.dtype)

    def _router_gates(self, x: Float[Array, 'B T D'], context: Context) -> Float[Array, 'B T H']:
        cfg, rescale = self.cfg, self.cfg.gates == 'renormalised'
        stage = self._route('stage', x)
        shared, probabilities = self._route('shared', x), self._route('routed', x)
        shared = shared * cfg.shared if rescale else shared
        routed = probabilities
        if cfg.routed:
            chosen = self._choose(probabilities, context)
            routed = probabilities * chosen
            if rescale:
                routed = cfg.active * routed / jnp.sum(routed, axis=-1, keepdims=True)
        if cfg.shared and cfg.routed:
            stage = 2 * stage if rescale else stage
            shared, routed = stage[..., :1] * shared, stage[..., 1:] * routed
        return jnp.concatenate([shared, routed], axis=-1)

    def _route(self, name: str, x: Float[Array, 'B T D']) -> Float[Array, 'B T E']:
        """The softmax of a router; 1 for a single term, nothing for none."""
        terms = {'shared': self.cfg.shared, 'routed': self.cfg.routed, 'stage': 2}[name]
        if name not in self.cfg.routers:
            return jnp.ones((*x.shape[:2], min(terms, 1)), at_least_float32(x))
        # Not the axis 'heads' of the projections: Hs, E and 2 need not divide over the devices that H does.
        logits = Linear((terms,), ('embed', 'routes'), name=f'{name}_router')(x)
        return jax.nn.softmax(logits.astype(at_least_float32(x)), axis=-1)

    def _query_gates(self, q: Float[Array, 'B T H K'], context: Context) -> Float[Array, 'B T H']:
        cfg = self.cfg
        ones = jnp.ones((*q.shape[:2], cfg.shared), at_least_float32(q))
        if not cfg.routed:
            return ones
        soft = jax.nn.softmax(norm_scores(q[:, :, cfg.shared :]), axis=-1)
        chosen = self._choose(soft, context)
        straight_through = chosen + (soft - jax.lax.stop_gradient(soft))
        return jnp.concatenate([ones, straight_through], axis=-1)

    def _choose(self, probabilities: Float[Array, 'B T E'], context: Context) -> Float[Array, 'B T E']:
        """1 for the routed heads of each token, 0 for the others; tells how well the heads are balanced."""
        chosen = top_mask(probabilities, self.cfg.active)
        load = token_mean(chosen, context)
        sow_metric(self, 'head_load', load)
        sow_loss(self, 'load_balance', self.cfg.routed * jnp.sum(token_mean(probabilities, context) * load))
        return chosen


def top_mask(probabilities: Float[Array, '... E'], active: int) -> Float[Array, '... E']:
    """1 at the `active` largest, 0 elsewhere, a constant to the gradient; of equal ones the first.

    >>> top_mask(jnp.array([0.1, 0.4, 0.4, 0.1]), 3).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    _, best = jax.lax.top_k(jax.lax.stop_gradient(probabilities), active)
    return jnp.sum(jax.nn.one_hot(best, probabilities.shape[-1], dtype=probabilities.dtype), axis=-2)


def norm_scores(q: Float[Array, 'B T E K']) -> Float[Array, 'B T E']:
    """|q_i| over the deviation (n - 1) of the norms of a token's heads: the same for queries all scaled alike."""
    wide = q.astype(at_least_float32(q))
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1) + EPSILON**2)
    mean = jnp.mean(norm, axis=-1, keepdims=True)
    variance = jnp.sum(jnp.square(norm - mean), axis=-1, keepdims=True) / (q.shape[2] - 1)
    return norm / jnp.sqrt(variance + jnp.square(EPSILON * mean))
