"""What a token's inner gradient still weighs later in its chunk, when decay and momentum lie between: one small table.

With keep factors a_t = exp(log_decay_t), momentum factors m_t = exp(log_momentum_t), steps theta_t and the inner
gradients g_t, the recurrence

    S_t = m_t S_{t-1} - theta_t g_t          D_t = a_t D_{t-1} + S_t

is linear in the g_i, so that inside a chunk of tokens i, s, t (S_0, D_0 at its start)

    D_t = b_t D_0 + f_t S_0 - sum_i G_ti g_i                     S_t = e_t S_0 - sum_i M_ti g_i

    A_ts = prod_{s<r<=t} a_r     b_t = prod_{r<=t} a_r           E_si = prod_{i<r<=s} m_r     e_t = prod_{r<=t} m_r
    f = A e                      G = A E Theta                   M = E Theta                  Theta = diag(theta)

A window (the Omega rule of Behrouz et al. 2025: every step descends the last w tokens' losses, token i with weight
gamma_i) only widens Theta: Theta_ti = theta_t gamma_i for t - w < i <= t, over the chunk's tokens and the w - 1 before.

A token that is not there (padding) must not let the momentum move D: its row of S_t is left out of the sum, E still
passes over it. All exponents are sums of logs, taken as 0/1 matrices times the logs and never as differences of
cumulative sums: nothing overflows, and a log of -10^4 cuts what lies before (a border between documents).
"""

import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.typing import Array, Bool, Float


@struct.dataclass
class Coefficients:
    """The table of one chunk of one head; without momentum D follows the gradients alone and the last three are None.

    Attributes:
        kept: b [C], of the change at the chunk's start.
        gradients: G [C, W-1+C], of every token's gradient in the change; the window's earlier tokens come first.
        carried: f [C], of the momentum at the chunk's start, in the change.
        momentum_kept: e_C, of the momentum at the chunk's start, in the momentum at its end.
        momentum_gradients: M_C [W-1+C], of every token's gradient in the momentum at the chunk's end.
    """

    kept: Float[Array, 'C']
    gradients: Float[Array, 'C W-1+C']
    carried: Float[Array, 'C'] | None = None
    momentum_kept: Float[Array, ''] | None = None
    momentum_gradients: Float[Array, 'W-1+C'] | None = None

    def before(self) -> 'Coefficients':
        """The table of reads that come before the token's own step: every row is the row above."""

        def shift(x: Array, first: float) -> Array:
            return jnp.concatenate([jnp.full_like(x[:1], first), x[:-1]])

        carried = None if self.carried is None else shift(self.carried, 0)
        return self.replace(kept=shift(self.kept, 1), gradients=shift(self.gradients, 0), carried=carried)


def coefficients(
    log_decay: Float[Array, 'C'] | None,
    log_momentum: Float[Array, 'C'] | None,
    step: Float[Array, 'C'],
    weight: Float[Array, 'W-1+C'] | None = None,
    real: Bool[Array, 'C'] | None = None,
) -> Coefficients:
    """The table of one chunk.

    Args:
        log_decay: ln a_t <= 0; None: nothing is forgotten.
        log_momentum: ln m_t <= 0; None: no momentum.
        step: theta_t >= 0; 0, with both logs 0, for a token that must leave no trace.
        weight: gamma_i of the w - 1 tokens before the chunk and of its own; None: no window (w = 1, gamma = 1).
        real: False for a token that must leave no trace: at it momentum moves nothing. None: all are real.

    >>> table = coefficients(jnp.log(jnp.array([0.5, 0.5])), None, jnp.array([1.0, 2.0]))
    >>> table.kept.tolist(), table.gradients.tolist()
    ([0.5, 0.25], [[1.0, 0.0], [0.5, 2.0]])
    """
    steps = _steps(step, weight)
    decay = decay_between(log_decay, step)
    kept = jnp.exp(sum_to(log_decay)) if log_decay is not None else jnp.ones_like(step)
    if log_momentum is None:
        return Coefficients(kept, multiply(decay, steps))
    if real is not None:
        decay = jnp.where(real[None, :], decay, 0)
    momentum = multiply(decay_between(log_momentum, step), steps)
    entering = jnp.exp(sum_to(log_momentum))
    return Coefficients(
        kept=kept,
        gradients=multiply(decay, momentum),
        carried=multiply(decay, entering[:, None])[:, 0],
        momentum_kept=entering[-1],
        momentum_gradients=momentum[-1],
    )


def decay_between(log_factor: Float[Array, 'C'] | None, like: Float[Array, 'C']) -> Float[Array, 'C C']:
    """prod_{s<r<=t} of the factors at (t, s), 0 above the diagonal; None: ones."""
    rows, columns = places(like.shape[0])
    if log_factor is None:
        return jnp.where(columns <= rows, jnp.ones((), like.dtype), 0)
    between = multiply((columns <= rows).astype(like.dtype), jnp.where(rows > columns, log_factor[:, None], 0))
    return jnp.where(columns <= rows, jnp.exp(between), 0)


def sum_to(log_factor: Float[Array, 'C']) -> Float[Array, 'C']:
    """sum_{r<=t} of the logs."""
    rows, columns = places(log_factor.shape[0])
    return jnp.sum(jnp.where(columns <= rows, log_factor[None, :], 0), axis=1)


def places(chunk: int) -> tuple[Array, Array]:
    """The row and the column of every entry of a [C, C] matrix."""
    return tuple(lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))


def multiply(a: Array, b: Array) -> Array:
    """A matrix product with all the digits of its inputs."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _steps(step: Float[Array, 'C'], weight: Float[Array, 'W-1+C'] | None) -> Float[Array, 'C W-1+C']:
    """Theta."""
    rows, columns = places(step.shape[0])
    if weight is None:
        return jnp.where(rows == columns, step[None, :], 0)
    window = weight.shape[0] - step.shape[0] + 1
    rows = jnp.arange(step.shape[0])[:, None]
    columns = jnp.arange(weight.shape[0])[None, :]  # column i is token i - (w - 1)
    return jnp.where((columns >= rows) & (columns < rows + window), step[:, None] * weight[None, :], 0)
