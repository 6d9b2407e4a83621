"""The third choice, retention: how the weights so far are kept, as a map from what is accumulated to what is used.

    D_t = a_t D_{t-1} + S_t       b_t = a_t b_{t-1}       anchor' = settle(anchor, b_C, D_C)       W = weights(anchor)

S_t are the learner's steps (-theta_t g_t), a_t the decays (the retention gate); the anchor stands at the chunk's start.

| name | fresh anchor | W | settled, with Z = b_C anchor + D_C | a chunk reads |
| --- | --- | --- | --- | --- |
| keep, decay | W_0 | anchor | Z | b_t W + D_t |
| lq, 'paper' | W_0 / norm_q(W_0) | A / clamp(norm_q(A))^(q-2) | Z | b_t W + D_t / clamp(norm_q(A))^(q-2) |
| lq, 'dual' | the A with W(A) = W_0 | (q-1) sign(A) abs(A)^(p-1) norm_p(A)^(2-p) | Z | W + slope D_t |
| kl | W_0, as logits | c softmax(L), or that - c / inputs | Z | W + D_t |
| elastic_net | W_0 | anchor | S_gamma(Z), gamma = C threshold | b_t W + D_t |
| elastic_net, 'ftrl' | W_0 | S_threshold(A) | Z | W + D_t |
| bregman | W_0, as logits | sigmoid(L) | Z | W + D_t |
| f_divergence | c softmax(W_0) | anchor | W g(D_C - zeta), zeta: every row sums to c | W + D_t |
| row_norm | W_0 | anchor | rows of Z at the norms of W_0's | b_t W + D_t |

decay, lq and kl forget towards 'zero', as printed, or towards the 'initial' weights: then the anchor is what has been
added to the fresh one, A = fresh + anchor, and the retention's global term is the distance from W_0 in place of 0.

A row is the last axis, the incoming weights of one unit; norm_q is over the whole weight; 1/p + 1/q = 1. The maps are
in `proximal.py` (Behrouz et al. 2025, Miras; row_norm: Zhang et al. 2025, LaCT). Where weights are not linear in the
anchor, a chunk's own steps are added to the weights themselves, and the map is taken at the chunk's end.

Two choices. The printed l_q map has degree 3 - q, so that for q = 4 forgetting *enlarges* the weights (norm_q of A .1,
1, 10 gives norms 10, 1, .1): the anchor starts at norm 1, and the norm is clamped in the divisor. KL carries logits in
place of c softmax(a log W + S): the same weights, since constants of a row drop out, and no log of a small number.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.memories import proximal
from jattn.memories.architecture import Slow
from jattn.memories.norms import lq_direction, lq_norm, row_direction, row_norm
from jattn.ops.fast_weights.dual import Parts, Weights
from jattn.typing import Array, Float, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention(abc.ABC):
    """The base of all retentions; what it does not say otherwise is linear decay. All functions are for one head.

    Attributes:
        decays: whether it takes a decay gate (a_t < 1).
        is_linear: whether the weights are the anchor and settle to b_C anchor + D_C: then exact fast forms exist.
    """

    decays: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False

    @abc.abstractmethod
    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        """The weights that the anchor stands for."""

    def accumulator(self, initial: Weights, slow: Slow) -> Weights:
        """The anchor of a fresh memory; `initial` are its learned initial weights W_0."""
        return initial

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        """What a chunk reads, as fixed + b_t fading + slope D_t; fixed + fading are the weights of the anchor."""
        return Parts(fixed=None, fading=self.weights(anchor, initial, slow))

    def settle(
        self, anchor: Weights, kept: Float[Array, ''], change: Weights, initial: Weights, slow: Slow, tokens: int
    ) -> Weights:
        """The anchor after a chunk of so many tokens that kept b_C of it (a number, or one a column) and added D_C."""
        return _each(lambda a, d: proximal.l2_step(a, kept, d), anchor, change)

    def slow(self, shapes: tuple[Shape, ...]) -> dict[str, tuple[Shape, float]]:
        """name -> (shape, initial value) of a head's slow parameters."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep(Retention):
    """Nothing is forgotten: linear attention, DeltaNet, TTT."""

    decays: ClassVar[bool] = False
    is_linear: ClassVar[bool] = True

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return anchor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetting(Retention):
    """The base of those that forget by a factor.

    Attributes:
        towards: what is left when all is forgotten: 'zero' of the accumulator, or the 'initial' weights.
    """

    towards: str = 'zero'

    def __post_init__(self) -> None:
        _one_of('towards', self.towards, ('zero', 'initial'))

    def origin(self, initial: Weights) -> Weights:
        """The accumulator that stands for the initial weights."""
        return initial

    def accumulator(self, initial: Weights, slow: Slow) -> Weights:
        origin = self.origin(initial)
        return origin if self.towards == 'zero' else _each(jnp.zeros_like, origin)

    def accumulated(self, anchor: Weights, initial: Weights) -> Weights:
        """A, of which the anchor is all, or what was added to the origin."""
        return anchor if self.towards == 'zero' else _each(jnp.add, self.origin(initial), anchor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay(Forgetting):
    """The l2 gate, local and global in one: RetNet, GLA, Gated DeltaNet, Titans, Yaad.

    >>> w, one = (jnp.array([2.0]),), jnp.ones(())
    >>> Decay().settle(w, 0.5 * one, (jnp.array([3.0]),), w, {}, 1)[0].tolist()
    [4.0]
    """

    @property
    def is_linear(self) -> bool:
        return self.towards == 'zero'

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return self.accumulated(anchor, initial)

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        return Parts(fixed=None if self.is_linear else initial, fading=anchor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lq(Forgetting):
    """The l_q norm in place of l2 (Moneta: q = 4).

    The 'dual' form is the exact map of norm_q(W)^2 / (2 (q-1)), with abs(A)^(p-1) smoothed at 0. Its Jacobian is
    (p-1) W_j / A_j on the diagonal; reads inside a chunk take for all entries the A^2-weighted mean of that, which is
    norm_p(A)^2 / norm_2(A)^2.

    Attributes:
        q: above 1; at 2 all forms are plain decay.
        form: 'paper', 'dual', or 'none': plain decay, to compare with.
        low, high: where 'paper' clamps the norm in its divisor.
        epsilon: of 'dual', (u^2 + epsilon)^((p-2)/2) with u = A over its largest entry.
    """

    q: float = 4.0
    form: str = 'paper'
    low: float = 0.3
    high: float = 3.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of('form', self.form, ('paper', 'dual', 'none'))
        if not 1 < self.q < math.inf:
            raise ValueError(f'retention.q={self.q} must be finite and above 1')
        if not 0 < self.low <= self.high:
            raise ValueError(f'retention.low={self.low} must be positive and at most retention.high={self.high}')
        if not self.epsilon > 0:
            raise ValueError(f'retention.epsilon={self.epsilon} must be positive')

    @property
    def is_linear(self) -> bool:
        return self.form == 'none' and self.towards == 'zero'

    def origin(self, initial: Weights) -> Weights:
        if self.form == 'dual':
            return _each(lambda w: proximal.lq_dual_inverse(w, self.q), initial)
        return initial if self.form == 'none' else _each(lambda w: lq_direction(w, self.q), initial)

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        whole = self.accumulated(anchor, initial)
        if self.form == 'dual':
            return _each(lambda a: proximal.lq_dual(a, self.q, self.epsilon), whole)
        return _each(lambda a: a / self._divisor(a), whole)

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        whole = self.accumulated(anchor, initial)
        if self.form == 'dual':
            return Parts(fixed=self.weights(anchor, initial, slow), fading=None, slope=_each(self._mean_slope, whole))
        slope = _each(lambda a: 1 / self._divisor(a), whole)
        fixed = None if self.towards == 'zero' else _each(jnp.multiply, self.origin(initial), slope)
        return Parts(fixed=fixed, fading=_each(jnp.multiply, anchor, slope), slope=slope)

    def _divisor(self, whole: Array) -> Array:
        return (
            proximal.lq_divisor(whole, self.q, self.low, self.high)
            if self.form == 'paper'
            else jnp.ones((), whole.dtype)
        )

    def _mean_slope(self, whole: Array) -> Array:
        ratio = lq_norm(lq_direction(whole, 2.0), self.q / (self.q - 1))
        return jnp.where(ratio > 0, jnp.square(ratio), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KL(Forgetting):
    """Every row a softmax (Memora): W >= 0 and its rows sum to c; forgetting towards zero makes them uniform.

    The initial weights are logits, and must not be equal: equal units have equal gradients for ever. c, one a weight,
    is learned as its logarithm, so that it stays positive, from sqrt(inputs).

    Attributes:
        centred: c / inputs is taken off, so that a row sums to 0.
    """

    centred: bool = False

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        whole = self.accumulated(anchor, initial)
        return tuple(self._row(logits, jnp.exp(slow[_log_total(n)])) for n, logits in enumerate(whole))

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        return Parts(fixed=self.weights(anchor, initial, slow), fading=None)

    def slow(self, shapes: tuple[Shape, ...]) -> dict[str, tuple[Shape, float]]:
        return {_log_total(n): ((), math.log(shape[-1]) / 2) for n, shape in enumerate(shapes)}

    def _row(self, logits: Array, total: Array) -> Array:
        share = jax.nn.softmax(logits, axis=-1)
        return total * (share - 1 / logits.shape[-1] if self.centred else share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticNet(Retention):
    """l2 with l1, soft forgetting with hard: what stays below the threshold is gone.

    Attributes:
        form: 'hard', 'smooth' (the same with an arctan) or 'ftrl' (only the reading is thresholded, not what is kept).
        threshold: of every token; of the accumulator for 'ftrl'.

    >>> w, one = (jnp.array([2.0, 0.25, -1.0]),), jnp.ones(())
    >>> ElasticNet(threshold=0.25).settle(w, one, (jnp.zeros(3),), w, {}, 2)[0].tolist()
    [1.5, 0.0, -0.5]
    """

    form: str = 'hard'
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        _one_of('form', self.form, ('hard', 'smooth', 'ftrl'))
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f'retention.threshold={self.threshold} must be finite and at least 0')

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return _each(lambda a: proximal.soft_threshold(a, self.threshold), anchor) if self.form == 'ftrl' else anchor

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        if self.form == 'ftrl':
            return Parts(fixed=self.weights(anchor, initial, slow), fading=None)
        return Parts(fixed=None, fading=anchor)

    def settle(
        self, anchor: Weights, kept: Float[Array, ''], change: Weights, initial: Weights, slow: Slow, tokens: int
    ) -> Weights:
        if self.form == 'ftrl':
            return super().settle(anchor, kept, change, initial, slow, tokens)
        threshold, smooth = tokens * self.threshold, self.form == 'smooth'
        return _each(lambda a, d: proximal.elastic_net_step(a, kept, d, threshold, smooth=smooth), anchor, change)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bregman(Retention):
    """The Bregman divergence of F = sum f with f' = logit: weights in (0, 1); the initial weights are logits."""

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return _each(jax.nn.sigmoid, anchor)

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        return Parts(fixed=self.weights(anchor, initial, slow), fading=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FDivergence(Retention):
    """Near in an f-divergence, on the simplex: W >= 0 and its rows sum to c. There is no decay gate.

    'kl' is `KL` without decay, in the weights themselves. An entry that reaches 0 stays there.

    Attributes:
        divergence: 'kl', 'chi2' or 'reverse_kl'.
        total: c; None: sqrt(inputs).
    """

    decays: ClassVar[bool] = False

    divergence: str = 'kl'
    total: float | None = None

    def __post_init__(self) -> None:
        _one_of('divergence', self.divergence, tuple(proximal.DIVERGENCES))
        if self.total is not None and not 0 < self.total < math.inf:
            raise ValueError(f'retention.total={self.total} must be positive and finite, or None for sqrt(inputs)')

    def accumulator(self, initial: Weights, slow: Slow) -> Weights:
        return _each(lambda w: self._total(w) * jax.nn.softmax(w, axis=-1), initial)

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return anchor

    def parts(self, anchor: Weights, initial: Weights, slow: Slow) -> Parts:
        return Parts(fixed=anchor, fading=None)

    def settle(
        self, anchor: Weights, kept: Float[Array, ''], change: Weights, initial: Weights, slow: Slow, tokens: int
    ) -> Weights:
        return _each(lambda w, d: proximal.f_divergence_step(w, d, self._total(w), self.divergence), anchor, change)

    def _total(self, weight: Array) -> float:
        return math.sqrt(weight.shape[-1]) if self.total is None else self.total


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowNorm(Retention):
    """After every chunk each row has the norm of its initial one (LaCT); of a vector, the whole. A zero row stays zero.

    That is all the forgetting there is: old steps shrink when the row is scaled back.

    >>> initial, one = (jnp.array([[3.0, 4.0]]),), jnp.ones(())
    >>> RowNorm().settle(initial, one, (jnp.array([[0.0, 4.0]]),), initial, {}, 1)[0].round(3).tolist()
    [[1.75..., 4.68...]]
    """

    decays: ClassVar[bool] = False

    def weights(self, anchor: Weights, initial: Weights, slow: Slow) -> Weights:
        return anchor

    def settle(
        self, anchor: Weights, kept: Float[Array, ''], change: Weights, initial: Weights, slow: Slow, tokens: int
    ) -> Weights:
        settled = super().settle(anchor, kept, change, initial, slow, tokens)
        return _each(lambda z, w: row_direction(z) * row_norm(w), settled, initial)


def _log_total(weight: int) -> str:
    return f'log_total_{weight}'


def _each(function: Callable[..., Array], *weights: Weights) -> Weights:
    return tuple(map(function, *weights))


def _one_of(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f'retention.{name}={value!r} must be one of {", ".join(legal)}')


RETENTIONS: dict[str, Retention] = {
    'keep': Keep(),
    'decay': Decay(),
    'lq': Lq(),
    'kl': KL(),
    'elastic_net': ElasticNet(),
    'bregman': Bregman(),
    'f_divergence': FDivergence(),
    'row_norm': RowNorm(),
}
