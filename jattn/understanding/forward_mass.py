"""Forward mass: how much a second copy of a text attends to what stood behind it in the first.

    mass_i = sum of A[S + s + i, j] over j = i + 1 .. S - 1        token i of copy 2, later tokens j of copy 1

In one pass a causal model cannot look at later tokens at all; where a text stands twice ("Re-Reading", Xu et al. 2024)
the second copy can. A head that looks at all visible tokens alike has (S - 1 - i) / (i + 1 + S + s) with s separators.
"""

import jax.numpy as jnp

from jattn.typing import Array, Float


def forward_mass(pattern: Float[Array, '*L T T'], size: int, separators: int = 1) -> Float[Array, '*L S']:
    """The mass of every token of the second copy.

    Args:
        pattern: attention weights, queries then keys, of rows that begin with both copies.
        size: S, tokens of a copy.
        separators: tokens between the copies.

    Raises:
        ValueError: the rows are too short for two copies.

    >>> pattern = jnp.tril(jnp.ones((5, 5))) / jnp.arange(1, 6)[:, None]
    >>> forward_mass(pattern, size=2).tolist()        # 1 / 4 and 0
    [0.25, 0.0]
    """
    second = size + separators
    if pattern.shape[-1] < second + size or pattern.shape[-2] < second + size:
        raise ValueError(
            f'forward_mass: rows of {pattern.shape[-1]} tokens do not hold two copies of size={size} and '
            f'{separators} separators'
        )
    is_later = jnp.triu(jnp.ones((size, size), pattern.dtype), k=1)
    return jnp.einsum('...ij,ij->...i', pattern[..., second : second + size, :size], is_later)
