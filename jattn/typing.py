"""One letter, one axis: the alphabet of every annotation and einsum in jattn.

| letter | axis                          | letter | axis                                   |
| ------ | ----------------------------- | ------ | -------------------------------------- |
| B      | batch (rows)                  | K      | channels of a query or key head        |
| T      | time: tokens of this call     | V      | channels of a value head               |
| S      | source: keys attended to      | C      | tokens of a chunk                      |
| D      | model width                   | N      | slots of a cache, chunks of a sequence |
| H      | query heads                   | L      | layers                                 |
| G      | key heads (H a multiple of G) | E      | entries of a vocabulary                |
| F      | hidden units, features        | W      | taps of a convolution                  |

Annotations (jaxtyping) say the shape at every public boundary; `axis_sizes` checks it where a user's array comes in.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PyTree

__all__ = ['Array', 'Bool', 'Float', 'Int32', 'Key', 'PyTree', 'Shape', 'at_least_float32', 'axis_sizes']

Key = jax.Array  # a typed PRNG key
Shape = tuple[int, ...]


def at_least_float32(*arrays: jax.Array) -> np.dtype:
    """The dtype for softmax, recurrent states, decays and losses: float32, or float64 where the input has it."""
    return jax.numpy.promote_types(jax.numpy.result_type(*arrays), jax.numpy.float32)


def axis_sizes(where: str, **arrays: tuple[jax.Array | None, str]) -> Mapping[str, int]:
    """Binds each letter to one size across the named arrays, and returns the sizes.

    Args:
        where: who asks, the first word of the error.
        **arrays: name = (array, letters), as in `q=(q, 'B T H K')`; an array that is None is skipped, and a literal
            number in place of a letter must match.

    Raises:
        ValueError: an array has another rank, or a letter two sizes; names the array, its shape and the rule.

    >>> q, k = jax.numpy.zeros((2, 5, 4, 8)), jax.numpy.zeros((2, 5, 4, 16))
    >>> axis_sizes('attention', q=(q, 'B T H K'))
    {'B': 2, 'T': 5, 'H': 4, 'K': 8}
    >>> axis_sizes('attention', q=(q, 'B T H K'), k=(k, 'B S G K'))
    Traceback (most recent call last):
    ...
    ValueError: attention: k has shape (2, 5, 4, 16), but 'B S G K' with K=8 (from q) was expected
    """
    sizes, origin = {}, {}
    for name, (array, letters) in arrays.items():
        if array is None:
            continue
        axes = letters.split()
        if len(axes) != array.ndim:
            raise ValueError(f'{where}: {name} has shape {array.shape}, but {len(axes)} axes {letters!r} were expected')
        for axis, size in zip(axes, array.shape):
            expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if size != expected:
                source = '' if axis.isdigit() else f' with {axis}={expected} (from {origin[axis]})'
                raise ValueError(f'{where}: {name} has shape {array.shape}, but {letters!r}{source} was expected')
            origin.setdefault(axis, name)
    return sizes
