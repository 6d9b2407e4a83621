"""Associative recall as in H3: pairs of key and value, some of them again and again, then one key, to be answered.

    k_1 v_1  k_2 v_2 ... k_P v_P  =>  k        target at the last token: the value of k

The task of H3 (Fu et al. 2023). Half of the tokens but the marker (0) are keys, half values. In every row each key has
a value of its own, drawn with replacement; P pairs are drawn with replacement, and the question is one of the keys that
stand in the row, each equally likely. Against `associative_recall` (MQAR): one question in a row, keys that come more
than once and always with the same value, different keys with equal values.

The published vocabulary has a second marker, which never comes in the way of the task: chance there is 2 / (E - 2).
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, certain_logits, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleRecall(Task):
    """One question about a row of pairs.

    Attributes:
        vocabulary: E, odd: the marker, (E - 1) / 2 keys and as many values.
        pairs: P; a row has 2 P + 2 tokens.

    >>> task = SingleRecall(vocabulary=7, pairs=3)
    >>> batch = task.sample(jax.random.key(1), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0].tolist()
    ([3, 6, 2, 6, 3, 6, 0, 3], [0, 0, 0, 0, 0, 0, 0, 6])
    """

    kind: ClassVar[str] = 'discrete'

    vocabulary: int = 21
    pairs: int = 16

    def __post_init__(self) -> None:
        if self.vocabulary < 5 or self.vocabulary % 2 == 0:
            raise ValueError(f'SingleRecall: vocabulary={self.vocabulary} must be odd and at least 5')
        if self.pairs < 1:
            raise ValueError(f'SingleRecall: pairs={self.pairs} must be at least 1')

    @property
    def input_size(self) -> int:
        return self.vocabulary

    @property
    def output_size(self) -> int:
        return self.vocabulary

    @property
    def keys(self) -> int:
        """How many keys there are, and how many values."""
        return self.vocabulary // 2

    @property
    def context(self) -> int:
        """Tokens of the pairs, 2 P."""
        return 2 * self.pairs

    def sample(self, key: Key, batch: int) -> Batch:
        map_key, pair_key, ask_key = jax.random.split(key, 3)
        value_of = jax.random.randint(map_key, (batch, self.keys), self.keys + 1, self.vocabulary, jnp.int32)
        shown = jax.random.randint(pair_key, (batch, self.pairs), 0, self.keys, jnp.int32)
        is_shown = jnp.any(shown[:, :, None] == jnp.arange(self.keys)[None, None], axis=1)
        chance = jax.random.uniform(ask_key, is_shown.shape)
        asked = jnp.argmax(jnp.where(is_shown, chance, -1.0), axis=1).astype(jnp.int32)[:, None]
        values, answer = (jnp.take_along_axis(value_of, at, axis=1) for at in (shown, asked))
        context = jnp.stack([shown + 1, values], axis=2).reshape(batch, -1)
        inputs = jnp.concatenate([context, jnp.zeros_like(asked), asked + 1], axis=1)
        at_last = jnp.zeros_like(inputs)
        return Batch(inputs, at_last.at[:, -1:].set(answer), at_last.at[:, -1].set(1).astype(jnp.float32))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the answer, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss and accuracy of the answer."""
        return token_metrics(outputs, batch)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the value behind the key; any value."""
        pairs = batch.inputs[:, : self.context].reshape(len(batch.inputs), self.pairs, 2)
        place = jnp.argmax(pairs[:, :, 0] == batch.inputs[:, -1:], axis=1)[:, None]
        answer = jnp.take_along_axis(pairs[:, :, 1], place, axis=1)
        any_value = CERTAIN * ((jnp.arange(self.vocabulary) > self.keys) - 1.0)[None, None]
        return {
            'look_up': certain_logits(jnp.broadcast_to(answer, batch.inputs.shape), self.vocabulary),
            'chance': jnp.broadcast_to(any_value, (*batch.inputs.shape, self.vocabulary)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing a value; how many different keys stand in a row, in the mean."""
        return {
            'look_up': 0.0,
            'chance': math.log(self.keys),
            'chance_accuracy': 1 / self.keys,
            'different_keys': self.keys * (1 - (1 - 1 / self.keys) ** self.pairs),
        }

    def tiny(self) -> 'SingleRecall':
        return dataclasses.replace(self, vocabulary=9, pairs=4)
