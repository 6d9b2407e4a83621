"""What a retention minimises, solved: the closed forms of argmin_W <g, W> + Ret(W, W') for a step along a gradient g.

With eta the size of a step, and 1/beta and 1/alpha the weights of norm(W)^2 / 2 and of sum abs(W) or of the negative
entropy sum W log W (Behrouz et al. 2025, Miras):

| step | near W' | W | with |
| --- | --- | --- | --- |
| l2 | norm(W - W')^2 / (2 eta) | kept W' + change | kept = beta / (beta + eta), change = - eta kept g |
| elastic net | the same | S_gamma(kept W' + change) | the same, gamma = eta kept / alpha |
| KL, simplex | sum W log(W / W') / eta | c softmax(kept log W' + change) | kept = alpha / (alpha + eta), the same |
| f-divergence, simplex | sum W' f(W / W') / eta | W' g_f(change - zeta), g_f = (f')^-1 | change = - eta g |
| Bregman, f' = logit | that of sum f, over eta | sigmoid(logit W' + change) | change = - eta g |
| l_q | norm_q(W)^2 / (2 (q-1)) | (q-1) sign(A) abs(A)^(p-1) norm_p(A)^(2-p) | A = - eta sum g, 1/p + 1/q = 1 |

A memory learns `kept` (the decay gate) and the size of `change` apart. The simplex of a matrix is one a row, over the
last axis: W >= 0 and its sum is c. All functions keep their dtype and have finite gradients at 0.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jattn.memories.norms import lq_norm
from jattn.nn.largest import largest
from jattn.typing import Array, Float


def l2_step(weights: Float[Array, '...'], kept: Float[Array, ''], change: Float[Array, '...']) -> Float[Array, '...']:
    """kept W' + change.

    >>> l2_step(jnp.array([2.0]), 0.5, jnp.array([3.0])).tolist()
    [4.0]
    """
    return kept * weights + change


def elastic_net_step(
    weights: Float[Array, '...'],
    kept: Float[Array, ''],
    change: Float[Array, '...'],
    threshold: Float[Array, ''],
    *,
    smooth: bool = False,
) -> Float[Array, '...']:
    """S_threshold(kept W' + change).

    >>> elastic_net_step(jnp.array([2.0, 0.25]), 1.0, jnp.zeros(2), 0.5).tolist()
    [1.5, 0.0]
    """
    return soft_threshold(l2_step(weights, kept, change), threshold, smooth=smooth)


def soft_threshold(z: Float[Array, '...'], threshold: Float[Array, ''], *, smooth: bool = False) -> Float[Array, '...']:
    """sign(z) max(0, abs(z) - threshold); smooth: abs(z) arctan(z / threshold) / (pi / 2). A threshold of 0: z.

    >>> soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
    [-2.0, 0.0, 1.0]
    """
    some = jnp.where(threshold > 0, threshold, 1)
    shrunk = jnp.abs(z) * jnp.arctan(z / some) * (2 / jnp.pi) if smooth else z - jnp.clip(z, -some, some)
    return jnp.where(threshold > 0, shrunk, z)


def kl_step(
    weights: Float[Array, '... N'], kept: Float[Array, ''], change: Float[Array, '... N'], total: Float[Array, '']
) -> Float[Array, '... N']:
    """c softmax(kept log W' + change), as printed; a memory carries the logits instead, which need no log.

    >>> kl_step(jnp.array([1.0, 3.0]), 0.0, jnp.zeros(2), 4.0).tolist()
    [2.0, 2.0]
    """
    return total * jax.nn.softmax(kept * jnp.log(weights) + change, axis=-1)


def bregman_step(
    weights: Float[Array, '...'], kept: Float[Array, ''], change: Float[Array, '...']
) -> Float[Array, '...']:
    """sigmoid(kept logit W' + change), W' in (0, 1); a memory carries the logits instead.

    >>> bregman_step(jnp.array([0.25]), 0.0, jnp.zeros(1)).tolist()
    [0.5]
    """
    return jax.nn.sigmoid(kept * (jnp.log(weights) - jnp.log1p(-weights)) + change)


def lq_divisor(accumulator: Float[Array, '...'], q: float, low: float, high: float) -> Float[Array, '']:
    """clamp(norm_q(A), low, high)^(q-2): the printed l_q map is W = A over it, which lacks the power of abs(A).

    >>> lq_divisor(jnp.array([0.0, 2.0]), 4.0, 0.3, 3.0).item()
    4.0
    """
    return jnp.clip(lq_norm(accumulator, q), low, high) ** (q - 2)


def lq_dual(accumulator: Float[Array, '...'], q: float, epsilon: float = 0.0) -> Float[Array, '...']:
    """(q-1) sign(A) abs(A)^(p-1) norm_p(A)^(2-p), 1/p + 1/q = 1: the W whose norm_q(W)^2 / (2 (q-1)) has gradient A.

    Args:
        accumulator: A.
        q: above 1.
        epsilon: of abs(u) ~ sqrt(u^2 + epsilon), u = A over its largest entry; for q > 2 the exact map has an infinite
            slope at 0.

    >>> lq_dual(jnp.array([3.0, -4.0]), 2.0).tolist()
    [3.0, -4.0]
    """
    return (q - 1) * _duality(accumulator, q / (q - 1), epsilon)


def lq_dual_inverse(weights: Float[Array, '...'], q: float) -> Float[Array, '...']:
    """The gradient of norm_q(W)^2 / (2 (q-1)): the A with lq_dual(A) = W.

    >>> lq_dual(lq_dual_inverse(jnp.array([3.0, -4.0]), 4.0), 4.0).round(4).tolist()
    [3.0, -4.0]
    """
    return _duality(weights, q, 0.0) / (q - 1)


def _duality(x: Array, p: float, epsilon: float) -> Array:
    """The gradient of norm_p(x)^2 / 2; of degree 1, so it is taken in units of the largest entry."""
    most = largest(jnp.abs(x).ravel())
    unit = jnp.where(most > 0, most, 1)
    constant = lax.stop_gradient(unit)
    u = (x / constant) / (unit / constant)  # x / unit, whose derivative squares no unit
    square = jnp.square(u) + epsilon
    size = lq_norm(u, p)
    power = jnp.where(square > 0, square, 1) ** ((p - 2) / 2)
    return unit * u * power * jnp.where(size > 0, size, 1) ** (2 - p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """An f-divergence, by the ratio t = W / W' of an entry whose gradient lies `gap` below the best entry's ratio.

    Attributes:
        ratio: (best ratio, gap) -> g_f(f'(best) - gap).
        slope: its derivative by the best ratio.
    """

    ratio: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]


DIVERGENCES: dict[str, Divergence] = {
    # f = t log t, f' = log t (its constant goes into zeta)
    'kl': Divergence(
        ratio=lambda best, gap: best * jnp.exp(-gap),
        slope=lambda best, gap: jnp.exp(-gap),
    ),
    # f = (t - 1)^2 / 2, f' = t - 1; entries stop at 0
    'chi2': Divergence(
        ratio=lambda best, gap: jnp.maximum(best - gap, 0),
        slope=lambda best, gap: (best > gap).astype(best.dtype),
    ),
    # f = - log t, f' = - 1/t
    'reverse_kl': Divergence(
        ratio=lambda best, gap: best / (1 + gap * best),
        slope=lambda best, gap: jnp.square(1 / (1 + gap * best)),
    ),
}


def f_divergence_step(
    weights: Float[Array, '... N'],
    change: Float[Array, '... N'],
    total: float,
    divergence: str,
    *,
    iterations: int = 40,
) -> Float[Array, '... N']:
    """W' g_f(change - zeta), with zeta such that the last axis sums to `total`.

    In place of zeta the ratio W / W' of the entry with the largest change is sought, between 1 and total / W', where
    nothing cancels: by bisection of its logarithm, then one Newton step. That step carries the derivatives, which are
    those of the implicit function.

    Args:
        weights: W' >= 0 with sums `total`; an entry of 0 stays 0.
        change: - eta g.
        total: c.
        divergence: 'kl', 'chi2' or 'reverse_kl'.
        iterations: of the bisection; each is one pass over the weights.

    Raises:
        ValueError: there is no such divergence.

    >>> f_divergence_step(jnp.array([1.0, 1.0]), jnp.array([0.5, -0.5]), 2.0, 'chi2').tolist()
    [1.5, 0.5]
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f'f_divergence_step: divergence={divergence!r} must be one of {", ".join(DIVERGENCES)}')
    f, alive = DIVERGENCES[divergence], weights > 0
    top = lax.stop_gradient(jnp.max(jnp.where(alive, change, -jnp.inf), axis=-1, keepdims=True))
    gap = jnp.where(alive, top - change, 0)

    fixed_weights, fixed_gap = lax.stop_gradient((weights, gap))
    best_weight = jnp.max(jnp.where(alive & (fixed_gap == 0), fixed_weights, 0), axis=-1, keepdims=True)
    limit = jnp.finfo(weights.dtype).max / 4
    high = jnp.log(jnp.clip(total / best_weight, 1, limit))

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        reached = jnp.sum(fixed_weights * f.ratio(jnp.exp(middle), fixed_gap), axis=-1, keepdims=True)
        return jnp.where(reached < total, middle, low), jnp.where(reached < total, high, middle)

    low, high = lax.fori_loop(0, iterations, halve, (jnp.zeros_like(high), high))
    best = jnp.exp((low + high) / 2)
    excess = jnp.sum(weights * f.ratio(best, gap), axis=-1, keepdims=True) - total
    steepness = jnp.sum(fixed_weights * f.slope(best, fixed_gap), axis=-1, keepdims=True)
    after = weights * f.ratio(best - excess / steepness, gap)
    return after * (total / jnp.sum(after, axis=-1, keepdims=True))  # what rounding has left, lest it add up
