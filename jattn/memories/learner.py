"""The fourth choice: how a step is taken from the inner gradients g_t.

| name | step | members |
| --- | --- | --- |
| gradient_descent | - theta_t g_t | TTT, delta rules, Moneta, Yaad, Memora |
| momentum | S_t = m_t S_{t-1} - theta_t g_t | Titans |
| omega | - theta_t sum_{t-w<i<=t} gamma_i g_i | Omega rule (Behrouz et al. 2025, Atlas) |
| implicit | the minimiser of the loss plus the distance: theta / (1 + theta k.k) for l2 | Longhorn |
| diagonal | the same with the diagonal of k k^T alone: every entry of the matrix for itself | Longhorn as published |
| muon | once a chunk, the orthogonalised sum of the chunk's steps | Atlas, LaCT |
| products | n gradient steps a token, each on its own key and value | DeltaProduct |
| ridge | the minimiser of all past losses, solved anew at every token | MesaNet |

The point at which g_t is taken is the memory's `chunk`: the weights at the chunk's start; with chunk=1 those right
before the token ('raw') or those after its decay ('decayed', as Gated DeltaNet).
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float

SOLVERS = ('gradient', 'implicit', 'ridge')
ERRORS = ('raw', 'decayed')
RIDGE_FLOOR, RIDGE_INIT = 0.25, 0.1107  # lambda = softplus(z) + floor, 1 at the start
# Keller Jordan's quintic iteration: singular values go to about 1, fast rather than exactly.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """How the memory's weights move.

    Attributes:
        momentum: whether steps are accumulated with the momentum gate.
        window: w, how many last tokens' losses a step descends, each weighted by the window gate; 1: its own alone.
        solver: 'gradient', 'implicit' (the proximal step, exact for l2) or 'ridge' (the minimiser of all past losses).
        diagonal: the implicit step with the diagonal of k k^T alone, d still theta / (1 + theta k.k): an entry of the
            memory meets its own key and value channel only, and theta may be per value channel.
        steps: gradient steps a token, each with a key and a value of its own.
        per_chunk: steps are summed over a chunk and applied at its end; reads see the weights at its start.
        orthogonal: the sum of a chunk (with its momentum) is orthogonalised, weight by weight (Muon).
        averaged: a chunk's reads see (1/n + a learned offset) of the change of its first n tokens (TTT).
        error: with chunk=1, where the error is taken: at the weights before ('raw') or after the decay ('decayed').
        reads: 'after' the token's own step, or 'before' it.
        iterations: of the ridge solver's conjugate gradients.
    """

    momentum: bool = False
    window: int = 1
    solver: str = 'gradient'
    diagonal: bool = False
    steps: int = 1
    per_chunk: bool = False
    orthogonal: bool = False
    averaged: bool = False
    error: str = 'raw'
    reads: str = 'after'
    iterations: int = 30

    def __post_init__(self) -> None:
        for name, legal in (('solver', SOLVERS), ('error', ERRORS), ('reads', ('after', 'before'))):
            if getattr(self, name) not in legal:
                raise ValueError(f'learner.{name}={getattr(self, name)!r} must be one of {", ".join(legal)}')
        for name in ('window', 'steps', 'iterations'):
            if getattr(self, name) < 1:
                raise ValueError(f'learner.{name}={getattr(self, name)} must be at least 1')
        if self.orthogonal and not self.per_chunk:
            raise ValueError('learner.orthogonal=True needs per_chunk=True: a step is orthogonalised once a chunk')
        others = self.momentum or self.window > 1 or self.per_chunk or self.averaged
        if self.solver != 'gradient' and (others or self.steps > 1):
            raise ValueError(
                f'learner.solver={self.solver!r} is a step of its own: no momentum, window or further steps'
            )
        if self.diagonal and self.solver != 'implicit':
            raise ValueError(f"learner.diagonal=True is a form of solver='implicit', not of {self.solver!r}")
        if self.steps > 1 and others:
            raise ValueError(f'learner.steps={self.steps} goes with plain gradient descent alone')
        if self.averaged and (self.momentum or self.window > 1 or self.per_chunk):
            raise ValueError('learner.averaged=True goes with plain gradient descent alone')
        if self.per_chunk and self.reads == 'before':
            raise ValueError(
                "learner.reads='before' has no meaning with per_chunk=True: all reads see the chunk's start"
            )


def implicit_step(step: Float[Array, '*N'], k: Float[Array, '... K']) -> Float[Array, '*N']:
    """The proximal step of l2: argmin_S |S - S'|^2 + theta |v - S^T k|^2 is a delta step of theta / (1 + theta k.k).

    A step per value channel has one axis more than one per head.
    """
    size = jnp.sum(jnp.square(k.astype(step.dtype)), axis=-1, keepdims=step.ndim == k.ndim)
    return step / (1 + step * size)


def orthogonalise(x: Float[Array, 'M N'], iterations: int = 5) -> Float[Array, 'M N']:
    """The nearest matrix with singular values about 1 (0.7 to 1.2), by Newton-Schulz; zero stays zero.

    >>> x = orthogonalise(jnp.array([[3.0, 0.0], [0.0, 0.5]]))
    >>> bool(jnp.all(jnp.abs(jnp.diag(x) - 1) < 0.35))
    True
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = x.shape[0] > x.shape[1]
    y = x.T if is_tall else x
    # The root of a sum plus epsilon: its gradient at zero is finite, where a norm's is not.
    y = y / (jnp.sqrt(jnp.sum(jnp.square(y)) + 1e-14) + 1e-7)
    for _ in range(iterations):
        gram = jnp.matmul(y, y.T, precision=lax.Precision.HIGHEST)
        polynomial = b * gram + c * jnp.matmul(gram, gram, precision=lax.Precision.HIGHEST)
        y = a * y + jnp.matmul(polynomial, y, precision=lax.Precision.HIGHEST)
    return y.T if is_tall else y


LEARNERS: dict[str, Learner] = {
    'gradient_descent': Learner(),
    'momentum': Learner(momentum=True),
    'omega': Learner(window=4),
    'implicit': Learner(solver='implicit'),
    'diagonal': Learner(solver='implicit', diagonal=True),
    'muon': Learner(momentum=True, per_chunk=True, orthogonal=True),
    'products': Learner(steps=2, error='decayed'),
    'ridge': Learner(solver='ridge'),
}
