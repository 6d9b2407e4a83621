"""The minimiser of all past losses, solved anew at every token (MesaNet, von Oswald et al. 2025).

    H_t = a_t H_{t-1} + theta_t k_t k_t^T                G_t = a_t G_{t-1} + theta_t k_t v_t^T
    y_t = G_t^T (H_t + Diag(lambda))^-1 q_t

that is weighted ridge regression of values on keys. Every token's system is solved by conjugate gradients, all tokens
at once: H_t x_t for all t is linear attention with queries x and values k, so an iteration is one call of
`ops.gated_linear_attention`, and no H but the state's exists. Gradients are those of the solution, by one more solve
(`lax.custom_linear_solve`), never through the iterations.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.contract import Rows
from jattn.memories.learner import RIDGE_FLOOR
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Places, Tokens
from jattn.ops import gated_linear_attention
from jattn.ops.fast_weights.dual import Weights
from jattn.typing import Array, Float, at_least_float32


@struct.dataclass
class RidgeState:
    """The sums that the solution is made of.

    Attributes:
        gram: H [B, H, K, K].
        memory: G [B, H, K, V].
    """

    gram: Float[Array, 'B H K K']
    memory: Float[Array, 'B H K V']


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    return None if cfg.learner.solver == 'ridge' else "it serves learner.solver='ridge' alone"


def empty_state(cfg: Any, batch: int) -> RidgeState:
    """The sums of nothing."""
    keys, values = cfg.keys, cfg.values
    return RidgeState(*(jnp.zeros((batch, cfg.heads, keys, n), jnp.float32) for n in (keys, values)))


def fresh_state(cfg: Any, fresh: Fresh) -> RidgeState:
    """The sums of nothing."""
    del fresh
    return jax.tree.map(lambda leaf: leaf[0], empty_state(cfg, 1))


def readings(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, before: RidgeState, after: RidgeState
) -> dict[str, Array]:
    """What the tools read: surprise is the norm of (error before the write) k^T, state_norm that of G."""
    del rows
    _, found = recurrence(cfg, tokens, places, fresh, before)
    return found | {'state': after.memory}


def recurrence(
    cfg: Any, tokens: Tokens, places: Places, fresh: Fresh, before: RidgeState
) -> tuple[Float[Array, 'B T H V'], dict[str, Array]]:
    """Token by token, as defined: the outputs and the readings."""
    ridge = _ridge(fresh)
    log_decay = jnp.zeros_like(tokens.step) if tokens.log_decay is None else tokens.log_decay

    def solve(gram: Array, b: Array) -> Array:
        return _solve(cfg, gram, ridge, b[:, :, None])[:, :, 0]

    def token(state: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        q, k, v, step, log_decay, real, new = inputs
        gram, memory = (jnp.where(new[:, None, None, None], 0, x) for x in state)
        error = v - jnp.einsum('bhkv,bhk->bhv', memory, solve(gram, k), precision='highest')
        size = jnp.sqrt(jnp.sum(jnp.square(error), axis=-1) * jnp.sum(jnp.square(k), axis=-1))
        norm = jnp.sqrt(jnp.sum(jnp.square(memory), axis=(-2, -1)))
        decay = jnp.exp(log_decay)[..., None, None]
        gram = decay * gram + (step[..., None] * k)[..., :, None] * k[..., None, :]
        memory = decay * memory + (step[..., None] * k)[..., :, None] * v[..., None, :]
        y = jnp.einsum('bhkv,bhk->bhv', memory, solve(gram, q), precision='highest')
        kept = tuple(jnp.where(real[:, None, None, None], x, old) for x, old in zip((gram, memory), state))
        masked = (jnp.where(real[:, None], x, 0) for x in (size, step * size, norm))
        return kept, (jnp.where(real[:, None, None], y, 0), *masked)

    sequences = (tokens.q, tokens.k, tokens.v, tokens.step, log_decay, places.real, places.new)
    _, outputs = lax.scan(token, (before.gram, before.memory), tuple(jnp.moveaxis(x, 1, 0) for x in sequences))
    y, *found = (jnp.moveaxis(x, 0, 1) for x in outputs)
    return y, dict(zip(('surprise', 'write_size', 'state_norm'), found))


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: RidgeState | None
) -> tuple[Float[Array, 'B T H V'], RidgeState | None]:
    """Outputs, and the state after the call (None without one)."""
    del places
    dtype = at_least_float32(tokens.q, tokens.k)  # no solve in half precision
    k, step, ridge = tokens.k.astype(dtype), tokens.step[..., None], _ridge(fresh)[:, None]

    def sums(x: Array, written: Array, initial: Array | None) -> tuple[Array, Array]:
        return gated_linear_attention(
            x,
            k,
            step * written,
            tokens.log_decay,
            initial_state=initial,
            return_state=True,
            scale=1.0,
            segments=rows.segments,
            chunk=cfg.tile,
            implementation=cfg.implementation,
        )

    gram, memory = (None, None) if memory is None else (memory.gram, memory.memory)

    def matvec(x: Array) -> Array:
        return sums(x, k, gram)[0] + ridge * x

    solve = lambda matvec, b: conjugate_gradients(matvec, b, cfg.learner.iterations)
    x = lax.custom_linear_solve(matvec, tokens.q.astype(dtype), solve, symmetric=True)
    y, after = sums(x, tokens.v, memory)
    return y, None if gram is None else RidgeState(gram=sums(x, k, gram)[1], memory=after)


def weights(cfg: Any, fresh: Fresh, memory: RidgeState) -> Weights:
    """G^T (H + Diag(lambda))^-1 [B, H, V, K], the matrix whose product with a query is the answer to it."""
    unit = jnp.broadcast_to(jnp.eye(cfg.keys, dtype=memory.gram.dtype), memory.gram.shape)
    inverse = _solve(cfg, memory.gram, _ridge(fresh), unit)
    return (jnp.einsum('bhkv,bhkl->bhvl', memory.memory, inverse, precision='highest'),)


def _solve(
    cfg: Any, gram: Float[Array, 'B H K K'], ridge: Array, b: Float[Array, 'B H N K']
) -> Float[Array, 'B H N K']:
    """(H + Diag(lambda))^-1 of N vectors."""

    def matvec(x: Array) -> Array:
        return jnp.einsum('bhkl,bhnl->bhnk', gram, x, precision='highest') + ridge[:, :, None] * x

    return conjugate_gradients(matvec, b, cfg.learner.iterations)


def _ridge(fresh: Fresh) -> Float[Array, '1 H K']:
    """lambda, positive."""
    return (jax.nn.softplus(fresh.slow['ridge']) + RIDGE_FLOOR)[None]


def conjugate_gradients(matvec: Any, b: Float[Array, '... K'], iterations: int) -> Float[Array, '... K']:
    """x with matvec(x) = b, for one positive definite system a row of the last axis; solved rows stand still."""

    def dot(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, axis=-1, keepdims=True)

    def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
        x, r, p, size = carry
        image = matvec(p)
        curvature = dot(p, image)
        is_open = (size > 0) & (curvature > 0)
        rate = jnp.where(is_open, size / jnp.where(is_open, curvature, 1), 0)
        x, r = x + rate * p, r - rate * image
        after = dot(r, r)
        turn = jnp.where(is_open, after / jnp.where(is_open, size, 1), 0)
        return (x, r, r + turn * p, after), None

    start = (jnp.zeros_like(b), b, b, dot(b, b))
    (x, *_), _ = lax.scan(iterate, start, None, length=iterations)
    return x
