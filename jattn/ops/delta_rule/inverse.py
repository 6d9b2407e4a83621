"""The inverse of I + L for a strictly lower triangular L: what the tokens of a chunk owe to each other's corrections.

Diagonal blocks of 16 are inverted by substitution, X ← X - L_{·j} X_{j·} for one column j after another, and
neighbours are merged until one block is left, the upper right being 0:

    [I + L11          ]^-1   [     X11          ]
    [  L21    I + L22 ]    = [ -X22 L21 X11  X22]

Both keep float32's digits however parallel the keys are. The short product (I - L)(I + L²)(I + L⁴)... does not: with
parallel keys the powers of L reach 10^17 at 64 tokens, and their sum, whose entries are at most 1, is lost.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float

BLOCK = 16  # rows by substitution; 8 and 16 were the fastest on CPU, and merging from 1 took twice their time


@jax.custom_jvp
def unit_lower_inverse(lower: Float[Array, '*B C C']) -> Float[Array, '*B C C']:
    """(I + L)^-1, itself unit lower triangular.

    Its differential is -X dL X with dL below the diagonal, so that dL receives -strict_lower(X^T dX X^T).

    Args:
        lower: L, strictly lower triangular; what stands elsewhere must be 0. C is a power of two.

    Raises:
        ValueError: C is no power of two.

    >>> unit_lower_inverse(jnp.array([[0.0, 0.0], [0.5, 0.0]])).tolist()
    [[1.0, 0.0], [-0.5, 1.0]]
    """
    size = lower.shape[-1]
    if lower.shape[-2] != size or size & (size - 1):
        raise ValueError(f'unit_lower_inverse: lower has shape {lower.shape}, but [..., C, C] was expected, C = 2^n')
    block = min(BLOCK, size)
    inverse = _substitute(_blocks(lower, block, below=False))
    while block < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_multiply(second, _multiply(_blocks(lower, block, below=True), first))
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :, :]


@unit_lower_inverse.defjvp
def _differential(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (lower,), (change,) = primals, tangents
    inverse = unit_lower_inverse(lower)
    return inverse, -_multiply(inverse, _multiply(jnp.tril(change, -1), inverse))


def _blocks(lower: Float[Array, '*B C C'], size: int, *, below: bool) -> Float[Array, '*B N M M']:
    """The blocks [size, size] on the diagonal; below: the lower left block of every pair of them."""
    count = lower.shape[-1] // size
    grid = lower.reshape(*lower.shape[:-2], count, size, count, size)
    places = [(i + 1, i) for i in range(0, count, 2)] if below else [(i, i) for i in range(count)]
    return jnp.stack([grid[..., row, :, column, :] for row, column in places], axis=-3)


def _substitute(lower: Float[Array, '*B M M']) -> Float[Array, '*B M M']:
    size = lower.shape[-1]
    # Row 0 of the inverse is that of I, so the first column's step needs no product. Taken from `lower`, it also keeps
    # the result for a single token a function of the input, without which `vmap` under `jax.checkpoint` loses its axis.
    row, column = (lax.broadcasted_iota(jnp.int32, lower.shape, lower.ndim + axis) for axis in (-2, -1))
    inverse = jnp.where(row == column, 1, jnp.zeros_like(lower)) - jnp.where(column == 0, lower, 0)
    for j in range(1, size - 1):
        inverse -= lower[..., :, j : j + 1] * inverse[..., j : j + 1, :]
    return inverse


def _multiply(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
