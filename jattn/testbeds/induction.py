"""Induction: a marker stands once in a row of random tokens, and again at its end; say what followed it.

    r r r => a r r ... r r =>        target at the last token: a

The induction heads task of H3 (Fu et al. 2023) and Mamba (Gu and Dao 2023): the marker is token 0, the others are
uniform over 1 .. E-1, the first marker stands anywhere before the last two tokens. `scored` decides between success and
failure for some recurrences (Mamba, issue 62), so it is a choice: training on the 'answer' alone, or on 'all' next
tokens; the metrics are of the answer in any case.
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

SCORED = ('answer', 'all')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """One marker, seen once, asked at the end.

    Attributes:
        vocabulary: E; the marker and E - 1 others.
        tokens: T, of a row, the two markers included.
        scored: what the training loss counts: the 'answer', or 'all' next tokens, whose floor is `all_floor`.

    >>> task = Induction(vocabulary=8, tokens=8)
    >>> batch = task.sample(jax.random.key(1), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0].tolist(), batch.mask[0].tolist()[-2:]
    ([1, 7, 0, 4, 4, 5, 7, 0], [7, 0, 4, 4, 5, 7, 0, 4], [0.0, 1.0])
    """

    kind: ClassVar[str] = 'discrete'

    vocabulary: int = 20
    tokens: int = 32
    scored: str = 'answer'

    def __post_init__(self) -> None:
        if self.vocabulary < 3:
            raise ValueError(f'Induction: vocabulary={self.vocabulary} must be at least 3: a marker and two others')
        if self.tokens < 3:
            raise ValueError(f'Induction: tokens={self.tokens} must be at least 3: marker, answer, marker')
        if self.scored not in SCORED:
            raise ValueError(f'Induction: scored={self.scored!r} must be one of {", ".join(SCORED)}')

    @property
    def input_size(self) -> int:
        return self.vocabulary

    @property
    def output_size(self) -> int:
        return self.vocabulary

    def sample(self, key: Key, batch: int) -> Batch:
        token_key, place_key = jax.random.split(key)
        tokens = jax.random.randint(token_key, (batch, self.tokens), 1, self.vocabulary, jnp.int32)
        place = jax.random.randint(place_key, (batch, 1), 0, self.tokens - 2, jnp.int32)
        at = jnp.arange(self.tokens)[None]
        inputs = jnp.where((at == place) | (at == self.tokens - 1), 0, tokens)
        answer = jnp.take_along_axis(inputs, place + 1, axis=1)
        targets = jnp.concatenate([inputs[:, 1:], answer], axis=1)
        is_last = jnp.broadcast_to(at == self.tokens - 1, inputs.shape)
        return Batch(inputs, targets, is_last.astype(jnp.float32))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the answer, or of all next tokens, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask if self.scored == 'answer' else None)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss and accuracy of the answer."""
        return token_metrics(outputs, batch)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the token behind the first marker; any token that is no marker."""
        first = jnp.argmax(batch.inputs == 0, axis=1)[:, None]
        answer = jnp.take_along_axis(batch.inputs, first + 1, axis=1)
        answers = jnp.broadcast_to(answer, batch.inputs.shape)
        no_marker = -CERTAIN * (jnp.arange(self.vocabulary) == 0)
        return {
            'look_up': certain_logits(answers, self.vocabulary),
            'chance': jnp.broadcast_to(no_marker, (*batch.inputs.shape, self.vocabulary)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing a token; the least mean loss over all next tokens."""
        others = self.vocabulary - 1
        # The first token tells whether the marker stands there, and the other T - 3 places are equally likely; beside
        # the marker all but the last two targets are random tokens.
        elsewhere = 1 - 1 / (self.tokens - 2)
        hidden = elsewhere * math.log(max(self.tokens - 3, 1))
        free = (self.tokens - 2 - elsewhere) * math.log(others)
        return {
            'look_up': 0.0,
            'chance': math.log(others),
            'chance_accuracy': 1 / others,
            'all_floor': (hidden + free) / self.tokens,
        }

    def tiny(self) -> 'Induction':
        return dataclasses.replace(self, vocabulary=8, tokens=12)
