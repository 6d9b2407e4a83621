"""Sentences of noise with two words that matter: the class is which of two first cues and which of two second ones."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.data.classes import hits
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key

CUES = 4  # tokens 0, 1: the first cue, in the first half of a row; 2, 3: the second, in the second half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cues(Task):
    """Rows of uniform noise words with two cues.

    Attributes:
        tokens: T.
        noise: other words.

    >>> batch = Cues(tokens=8).sample(jax.random.key(0), 2)
    >>> [sorted(token for token in row if token < CUES) for row in batch.inputs.tolist()], batch.targets.tolist()
    ([[0, 2], [0, 3]], [0, 1])
    """

    kind: ClassVar[str] = 'discrete'
    output_size: ClassVar[int] = 4

    tokens: int = 24
    noise: int = 40

    @property
    def input_size(self) -> int:
        return CUES + self.noise

    def sample(self, key: Key, batch: int) -> Batch:
        noise_key, cue_key, place_key = jax.random.split(key, 3)
        words = jax.random.randint(noise_key, (batch, self.tokens), CUES, self.input_size)
        cues = jax.random.randint(cue_key, (batch, 2), 0, 2)
        half = self.tokens // 2
        places = jax.random.randint(place_key, (batch, 2), 0, half) + jnp.array([[0, half]])
        for n in range(2):
            is_cue = jnp.arange(self.tokens)[None] == places[:, n, None]
            words = jnp.where(is_cue, 2 * n + cues[:, n, None], words)
        return Batch(inputs=words, targets=2 * cues[:, 0] + cues[:, 1], mask=jnp.ones(batch))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        return {'loss': self.loss(outputs, batch), 'accuracy': Mean.of(hits(outputs, batch.targets), batch.mask)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Reading the cues."""
        found = [jnp.any(batch.inputs == cue, axis=1) for cue in (1, 3)]
        return {'look_up': 20.0 * jax.nn.one_hot(2 * found[0] + found[1], self.output_size)}

    def facts(self) -> dict[str, float]:
        return {'chance_accuracy': 0.25}

    def tiny(self) -> 'Cues':
        return dataclasses.replace(self, tokens=12)
