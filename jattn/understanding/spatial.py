"""How far a head of an image encoder looks: its attention by distance on the grid of patches (Li et al. 2023).

    hops(i, j)      = max(|row_i - row_j|, |column_i - column_j|)
    mass(k)         = mean over patches i of sum_{j: hops(i, j) = k} A_ij                   attention to the k-th ring
    density(k)      = mean over patches i that have a k-th ring of the mean of A_ij over it
    distance        = mean over patches i of sum_j A_ij |place_i - place_j| / sum_j A_ij    in patches

Rings are squares: 1, 8, 16, 24, ... patches inside an image, fewer at its edges, which is why the density is beside the
mass. i and j are patches alone. What goes to the tokens before them, the class token and registers, is what the masses
of a head leave of 1, `prefix_mass`; the distance is of the rest.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct

from jattn.typing import Array, Float, Int32


@struct.dataclass
class Spread:
    """Where the attention of heads goes on the grid.

    Attributes:
        mass, density: [..., H, K], by ring.
        distance: [..., H], in patches.
        prefix_mass: [..., H], the share that goes to the tokens before the patches.
        entropy: [..., H], of a patch's row, in nats, over all tokens.
    """

    mass: Float[Array, '*L H K']
    density: Float[Array, '*L H K']
    distance: Float[Array, '*L H']
    prefix_mass: Float[Array, '*L H']
    entropy: Float[Array, '*L H']


def hops(grid: tuple[int, int]) -> Int32[np.ndarray, 'N N']:
    """The ring on which each patch of a grid (rows, columns) lies, seen from each other.

    >>> hops((1, 3)).tolist()
    [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    """
    return np.abs(_places(grid)[:, None] - _places(grid)[None]).max(axis=-1)


def spread(pattern: Float[Array, '*L H T T'], grid: tuple[int, int]) -> Spread:
    """Where the attention of patches goes.

    Args:
        pattern: attention weights, queries then keys, of tokens whose last are the patches in raster order.
        grid: rows and columns of patches; what stands before them are class token and registers.

    Raises:
        ValueError: there are fewer tokens than patches.

    >>> found = spread(jnp.eye(5)[None], (2, 2))
    >>> found.mass.tolist(), found.distance.tolist(), found.prefix_mass.tolist()
    ([[1.0, 0.0]], [0.0], [0.0])
    """
    patches, tokens = grid[0] * grid[1], pattern.shape[-1]
    if tokens < patches:
        raise ValueError(f'spread: a grid of {grid} has {patches} patches, but the pattern {tokens} tokens')
    rows = pattern[..., tokens - patches :, :]
    own = rows[..., tokens - patches :]
    number = hops(grid)
    is_ring = (number[None] == np.arange(number.max() + 1)[:, None, None]).astype(np.float32)  # [K, N, N]
    members = is_ring.sum(axis=-1)  # [K, N]
    share = np.where(members > 0, 1 / np.maximum(members, 1), 0) / (members > 0).sum(axis=-1, keepdims=True)
    by_ring = jnp.einsum('...ij,kij->...ki', own, is_ring)
    far = np.linalg.norm(_places(grid)[:, None] - _places(grid)[None], axis=-1).astype(np.float32)
    total = own.sum(axis=-1)
    reach = jnp.einsum('...ij,ij->...i', own, far) / jnp.where(total > 0, total, 1)
    return Spread(
        mass=by_ring.mean(axis=-1),
        density=jnp.einsum('...ki,ki->...k', by_ring, share.astype(np.float32)),
        distance=reach.mean(axis=-1),
        prefix_mass=rows[..., : tokens - patches].sum(axis=-1).mean(axis=-1),
        entropy=-jnp.sum(jnp.where(rows > 0, rows * jnp.log(jnp.where(rows > 0, rows, 1)), 0), axis=-1).mean(axis=-1),
    )


def _places(grid: tuple[int, int]) -> Int32[np.ndarray, 'N 2']:
    """(row, column) of each patch in raster order."""
    return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)
