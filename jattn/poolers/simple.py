"""Poolers without parameters or maps: the mean, the largest of each channel, the last token, the first.

    mean_t x_t          max_t x_td          x_T          x_1          over the real tokens of the row

`cls` reads the class token, which must lead; `last` suits causal mixers, whose last token has seen all.
"""

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.nn.largest import largest
from jattn.poolers.pooler import PoolerConfig, mean_over_tokens, real_tokens
from jattn.typing import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleConfig(PoolerConfig):
    """A pooler that is one function."""

    @abc.abstractmethod
    def pool(self, tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
        """The vector; padding is 0, and a row without tokens gives 0."""

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Simple(self, **flax_kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanConfig(SimpleConfig):
    """The mean of the real tokens.

    Attributes:
        unit: whether it is divided by its length (sentence embeddings).

    >>> vec, maps = MeanConfig(width=1).make().apply({}, jnp.array([[[1.0], [3.0]]]))
    >>> vec.tolist(), maps
    ([[2.0]], None)
    """

    unit: bool = False

    def pool(self, tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
        mean = mean_over_tokens(tokens, real)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12) if self.unit else mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxConfig(SimpleConfig):
    """The largest of each channel over the real tokens."""

    def pool(self, tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
        return max_over_tokens(tokens, real)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastConfig(SimpleConfig):
    """The last real token."""

    ordered: ClassVar[bool] = True

    def pool(self, tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
        place = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
        return jnp.take_along_axis(tokens, place[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstConfig(SimpleConfig):
    """The first real token: the class token."""

    ordered: ClassVar[bool] = True

    def pool(self, tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
        return jnp.take_along_axis(tokens, jnp.argmax(real, axis=1)[:, None, None], axis=1)[:, 0]


class Simple(nn.Module):
    """The module of the configs of this file."""

    cfg: SimpleConfig

    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> tuple[Float[Array, 'B D'], None]:
        return self.cfg.pool(*real_tokens(tokens, context)), None


def max_over_tokens(tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
    """The largest of each channel over the real tokens; 0 where a row has none.

    >>> max_over_tokens(jnp.array([[[-1.0], [-3.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
    [[-1.0]]
    """
    found = largest(jnp.where(real[:, :, None], tokens, -jnp.inf), axis=1)
    return jnp.where(jnp.any(real, axis=1)[:, None], found, 0)
