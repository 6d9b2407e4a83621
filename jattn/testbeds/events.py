"""Event forecasting: when does the next event come, and of which kind? A Hawkes process whose kinds excite each other.

    lambda_k(t) = mu / K + sum_{t_j < t} a [k = k_j + 1 mod K] b exp(-b (t - t_j))          k = 0 .. K-1

An event of kind j raises the rate of kind j+1 by a b, which fades with rate b: a of its children are expected, and all
kinds together have the rate mu + e, where the excess e fades too. The wait is therefore the shorter of two with closed
forms, of the base rate and of the excess, which is so drawn exactly (Dassios and Zhao 2013).

    inputs_t = log(wait before event t), one-hot of its kind        outputs_t = mean and log std of a normal for the
    targets_t = log(wait after it), the next kind                               next log wait, K logits of its kind

The loss is the negative log likelihood of the logarithm of the wait and of the kind, in nats. The exact process is no
log-normal: `baselines` has the best outputs of this form, by quadrature over the true rates.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key

GRID = np.linspace(-14.0, 8.0, 353)  # log waits of the quadrature, in units of 1 / mu
SHORTEST = 1e-6  # a wait, in these units: its logarithm stays finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events(Task):
    """A Hawkes process whose kinds excite the next kind.

    Attributes:
        events: T.
        kinds: K.
        excitation: a, the children of an event; below 1, so that the process does not explode.
        fading: b, the rate at which excitement fades, in units of mu = 1.

    >>> batch = Events(events=5, kinds=3).sample(jax.random.key(0), 2)
    >>> batch.inputs.shape, batch.targets.shape
    ((2, 5, 4), (2, 5, 2))
    """

    kind: ClassVar[str] = 'continuous'

    events: int = 64
    kinds: int = 5
    excitation: float = 0.8
    fading: float = 1.0

    def __post_init__(self) -> None:
        if self.events < 1 or self.kinds < 2:
            raise ValueError(f'Events: events={self.events} must be at least 1 and kinds={self.kinds} at least 2')
        if not 0 < self.excitation < 1:
            raise ValueError(f'Events: excitation={self.excitation} must lie between 0 and 1')
        if self.fading <= 0:
            raise ValueError(f'Events: fading={self.fading} must be positive')

    @property
    def input_size(self) -> int:
        return 1 + self.kinds

    @property
    def output_size(self) -> int:
        return 2 + self.kinds

    def sample(self, key: Key, batch: int) -> Batch:
        def event(excess: Float[Array, 'B K'], key: Key) -> tuple[Array, tuple[Array, ...]]:
            wait_key, kind_key = jax.random.split(key)
            wait = self._wait(wait_key, jnp.sum(excess, axis=-1))
            faded = excess * jnp.exp(-self.fading * wait)[:, None]
            kind = jax.random.categorical(kind_key, jnp.log(1 / self.kinds + faded))
            excited = jax.nn.one_hot((kind + 1) % self.kinds, self.kinds)
            after = faded + self.excitation * self.fading * excited
            return after, (jnp.log(wait), kind, after)

        start = jnp.zeros((batch, self.kinds))
        _, drawn = jax.lax.scan(event, start, jax.random.split(key, self.events + 1))
        log_wait, kind, excess = (jnp.moveaxis(x, 0, 1) for x in drawn)
        return Batch(
            inputs=jnp.concatenate([log_wait[:, :-1, None], jax.nn.one_hot(kind[:, :-1], self.kinds)], axis=-1),
            targets=jnp.stack([log_wait[:, 1:], kind[:, 1:].astype(log_wait.dtype)], axis=-1),
            mask=jnp.ones((batch, self.events)),
            meta={'excess': excess[:, :-1]},
        )

    def _wait(self, key: Key, excess: Float[Array, 'B']) -> Float[Array, 'B']:
        """The shorter of a wait at rate 1 and one at the fading rate `excess` exp(-fading s), which may never end."""
        base, fading = jax.random.exponential(key, (2, len(excess)))
        left = 1 - self.fading * fading / jnp.maximum(excess, 1e-30)
        ends = jnp.where(left > 0, -jnp.log(jnp.where(left > 0, left, 1)) / self.fading, jnp.inf)
        return jnp.maximum(jnp.minimum(base, ends), SHORTEST)

    def loss(self, outputs: Float[Array, 'B T F'], batch: Batch) -> Mean:
        """Negative log likelihood of the next log wait and kind, in nats."""
        mean, log_std = outputs[..., 0], outputs[..., 1]
        scaled = (batch.targets[..., 0] - mean) * jnp.exp(-log_std)
        wait = 0.5 * jnp.square(scaled) + log_std + 0.5 * math.log(2 * math.pi)
        return Mean(Mean.of(wait, batch.mask).total + self._kind_loss(outputs, batch).total, jnp.sum(batch.mask))

    def metrics(self, outputs: Float[Array, 'B T F'], batch: Batch) -> dict[str, Mean]:
        """loss; squared error of the log wait; accuracy and loss of the kind."""
        right = jnp.argmax(outputs[..., 2:], axis=-1) == batch.targets[..., 1]
        return {
            'loss': self.loss(outputs, batch),
            'wait_error': Mean.of(jnp.square(outputs[..., 0] - batch.targets[..., 0]), batch.mask),
            'kind_loss': self._kind_loss(outputs, batch),
            'accuracy': Mean.of(right.astype(jnp.float32), batch.mask),
        }

    def _kind_loss(self, outputs: Array, batch: Batch) -> Mean:
        return cross_entropy(outputs[..., 2:], batch.targets[..., 1].astype(jnp.int32), batch.mask)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """`rates`: the best outputs for who knows the rates; `no_history`: those at no excess, for all tokens."""
        known = self._best_outputs(batch.meta['excess'])
        return {'rates': known, 'no_history': self._best_outputs(jnp.zeros_like(batch.meta['excess']))}

    def _best_outputs(self, excess: Float[Array, 'B T K']) -> Float[Array, 'B T F']:
        """Mean and deviation of the log wait, and the log of every kind's probability, by quadrature."""
        total = jnp.sum(excess, axis=-1, keepdims=True)
        grid = jnp.asarray(GRID, excess.dtype)[None, None]
        wait = jnp.exp(grid)
        faded = total * jnp.exp(-self.fading * wait)
        alive = jnp.exp(-wait - (total - faded) / self.fading)
        weights = wait * alive * (GRID[1] - GRID[0])  # d(wait) = wait d(log wait)
        base, excited = jnp.sum(weights, axis=-1), jnp.sum(weights * faded, axis=-1)
        density = weights * (1 + faded) / (base + excited)[..., None]
        mean = jnp.sum(density * grid, axis=-1)
        variance = jnp.sum(density * jnp.square(grid - mean[..., None]), axis=-1)
        share = excess / jnp.maximum(total, 1e-30)
        kinds = base[..., None] / self.kinds + excited[..., None] * share
        ends = jnp.stack([mean, 0.5 * jnp.log(variance)], axis=-1)
        return jnp.concatenate([ends, jnp.log(kinds)], axis=-1)

    def facts(self) -> dict[str, float]:
        """Guessing a kind; the events a unit of time once the process is stationary."""
        return {'chance_accuracy': 1 / self.kinds, 'rate': 1 / (1 - self.excitation)}

    def tiny(self) -> 'Events':
        return dataclasses.replace(self, events=16, kinds=min(self.kinds, 3))
