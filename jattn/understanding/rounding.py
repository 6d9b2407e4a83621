"""Weights of fewer bits: what a model still does when its matrices are rounded. The forward pass is simulated.

    s = max |w| / (2^(bits-1) - 1)          over the inputs of each output channel
    w' = s round(w / s)                     |w' - w| <= s / 2

16 bits are bfloat16, 32 leave everything as it is. What a matrix is, and which of its axes are inputs, is told by the
logical names of its parameter, as for the optimizer: projections are rounded, embeddings, norms and biases are not.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.testbeds.task import Batch
from jattn.training.optimizer import Names, is_names, matrix_axes
from jattn.training.step import abstract_params
from jattn.typing import Array, Float, PyTree

BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)


def round_weights(model: nn.Module, params: PyTree, inputs: Array, bits: int) -> PyTree:
    """The parameters with every projection rounded.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: that it reads, for the names of its parameters; nothing is run.
        bits: of a weight: 2 to 8 (integers), 16 (bfloat16) or 32 (as they are).

    Raises:
        ValueError: another number of bits.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))['params']
    >>> kernel = round_weights(model, params, tokens, 3)['body']['block_0']['mixer']['q_proj']['kernel']
    >>> len(set(kernel[0, :, 0, 0].tolist())) <= 7
    True
    """
    if bits not in BITS:
        raise ValueError(f'round_weights: bits={bits} must be one of {", ".join(map(str, BITS))}')
    names = nn.get_partition_spec(abstract_params(model, Batch(inputs, inputs, inputs)))
    return jax.tree.map(lambda own, weight: _rounded(weight, own, bits), names, params, is_leaf=is_names)


def _rounded(weight: Float[Array, '...'], names: Names, bits: int) -> Float[Array, '...']:
    """A projection on its grid; anything else as it is."""
    axes = matrix_axes(names)
    if axes is None or bits == 32:
        return weight
    if bits == 16:
        return weight.astype(jnp.bfloat16).astype(weight.dtype)
    largest = jnp.max(jnp.abs(weight), axis=axes.reduction_axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
    return scale * jnp.round(weight / scale)
