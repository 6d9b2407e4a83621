"""What every trunk is: a frozen config that makes a linen module, called the same way in training and decoding.

outputs, state = trunk(inputs, context, state)          inputs: tokens [B, T], vectors [B, T, F] or images
"""

import abc
import dataclasses
from typing import Self

from flax import linen as nn

from jattn.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkConfig(abc.ABC):
    """The base of every trunk's config.

    Attributes:
        width: D.
    """

    width: int = 128

    @property
    @abc.abstractmethod
    def document_align(self) -> int:
        """Packed documents must start at multiples of it: the largest of the mixers'."""

    @abc.abstractmethod
    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        """A copy with the sizes that were left to the data."""

    @abc.abstractmethod
    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module, with the single field `cfg`."""

    @abc.abstractmethod
    def init_state(self, batch: int, capacity: int) -> PyTree:
        """A fresh state of all layers; an error where a trunk reads whole rows only."""

    @abc.abstractmethod
    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        """layer -> (path of its module, repeat): where its parameters, taps, edits and states are filed."""

    @abc.abstractmethod
    def flops(self, tokens: int) -> int:
        """Operations of the matrix products of one row's forward pass."""

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for the start of a run."""

    @abc.abstractmethod
    def tiny(self) -> Self:
        """A copy shrunk to seconds that keeps the choices."""
