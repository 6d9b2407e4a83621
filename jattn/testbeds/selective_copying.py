"""Selective copying: some tokens stand at random places among noise; write them down in order.

    . . c . a . . . b c .  > > > >          targets at the last K tokens: c a b c

The task of Mamba (Gu and Dao 2023), whose settings were never released; here the marker > stands for every token that
is to be written (token 1), noise is token 0, and the K tokens that count are uniform over 2 .. E-1, at K of the first
T - K places, all equally likely. What was written is not shown, so that a model must keep the order itself. (MAD's
form, one marker and then noise, is `mad.py`.)
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, certain_logits, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Int32, Key

NOISE, WRITE, FIRST = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Tokens among noise, to be written in order.

    Attributes:
        vocabulary: E; noise, the marker, and E - 2 tokens to copy.
        tokens: T, of a row, the K markers included.
        copies: K.

    >>> task = SelectiveCopying(vocabulary=8, tokens=10, copies=3)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0, -3:].tolist()
    ([4, 0, 0, 0, 0, 6, 6, 1, 1, 1], [4, 6, 6])
    """

    kind: ClassVar[str] = 'discrete'

    vocabulary: int = 16
    tokens: int = 64
    copies: int = 8

    def __post_init__(self) -> None:
        if self.vocabulary < FIRST + 2:
            raise ValueError(f'SelectiveCopying: vocabulary={self.vocabulary} must be at least {FIRST + 2}')
        if not 1 <= self.copies <= self.tokens - self.copies:
            raise ValueError(
                f'SelectiveCopying: tokens={self.tokens} must be at least {2 * self.copies}: a place for each of '
                f'copies={self.copies}, and a marker'
            )

    @property
    def input_size(self) -> int:
        return self.vocabulary

    @property
    def output_size(self) -> int:
        return self.vocabulary

    @property
    def context(self) -> int:
        """Tokens before the markers."""
        return self.tokens - self.copies

    def sample(self, key: Key, batch: int) -> Batch:
        place_key, token_key = jax.random.split(key)
        places = jnp.sort(choose(place_key, batch, self.copies, self.context), axis=1)
        tokens = jax.random.randint(token_key, (batch, self.copies), FIRST, self.vocabulary, jnp.int32)
        there = places[:, :, None] == jnp.arange(self.context)[None, None]
        context = jnp.sum(jnp.where(there, tokens[:, :, None], NOISE), axis=1, dtype=jnp.int32)
        inputs = jnp.concatenate([context, jnp.full((batch, self.copies), WRITE, jnp.int32)], axis=1)
        return Batch(inputs, self._at_markers(tokens), self._at_markers(jnp.ones_like(tokens)).astype(jnp.float32))

    def _at_markers(self, x: Int32[Array, 'B K']) -> Int32[Array, 'B T']:
        return jnp.pad(x, ((0, 0), (self.context, 0)))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the written tokens, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, sequence_accuracy (all K tokens), and the curve of accuracy by the token written."""
        right = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)[:, -self.copies :]
        return token_metrics(outputs, batch) | {'accuracy_by_copy': Mean.of(right, axis=0)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the k-th token that is no noise; any token that may be written."""
        context = batch.inputs[:, : self.context]
        is_token = context >= FIRST
        order = jnp.where(is_token, jnp.cumsum(is_token, axis=1), 0)
        is_next = order[:, None, :] == 1 + jnp.arange(self.copies)[None, :, None]
        tokens = jnp.sum(jnp.where(is_next, context[:, None, :], 0), axis=-1, dtype=jnp.int32)
        legal = jnp.where(jnp.arange(self.vocabulary) >= FIRST, 0.0, -CERTAIN)
        return {
            'look_up': certain_logits(self._at_markers(tokens), self.vocabulary),
            'chance': jnp.broadcast_to(legal, (*batch.inputs.shape, self.vocabulary)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing a token."""
        legal = self.vocabulary - FIRST
        return {'look_up': 0.0, 'chance': math.log(legal), 'chance_accuracy': 1 / legal}

    def tiny(self) -> 'SelectiveCopying':
        return dataclasses.replace(self, vocabulary=8, tokens=12, copies=3)
