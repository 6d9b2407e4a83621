"""What a recurrence that is written out in numpy is told: the tokens of one head."""

import dataclasses

import numpy as np

from jattn.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Stream:
    """The tokens of one head, and what the memory starts with.

    Attributes:
        q, k, v: [T, K], [T, K], [T, V]; with several steps a token k [T, N, K] and v [T, N, V].
        step: theta (also beta, dt): [T], [T, V] a value channel, or [T, N].
        log_decay: [T], or [T, K] a key channel; None: nothing is forgotten.
        log_momentum, threshold: [T]; None: there is none.
        erase: RWKV-7's (kk, kk a), [T, K] each; None: elsewhere.
        head, heads: which head of how many.
        initial: W_0, one matrix a layer.
        slow: scale and shift of the norm and the like, by name.
        chunk: tokens that share the weights of their gradients.
    """

    q: Float[Array, 'T K']
    k: Array
    v: Array
    step: Array
    log_decay: Array | None
    log_momentum: Array | None
    threshold: Array | None
    erase: tuple[Array, Array] | None
    head: int
    heads: int
    initial: tuple[Array, ...]
    slow: dict[str, Array]
    chunk: int

    @property
    def decay(self) -> Array:
        """a_t."""
        return np.exp(self.log_decay)
