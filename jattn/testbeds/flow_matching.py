"""Flow matching (Lipman et al. 2022) towards a few known points: the best velocity is known in closed form.

    data x_1 = one of K points, all alike       x_0 ~ N(0, I)      t ~ U(0, 1)
    inputs x_t = (1 - t) x_0 + t x_1            target v = x_1 - x_0
    best   E[v | x_t] = (sum_k w_k p_k - x_t) / (1 - t)      w = softmax_k(-|x_t - t p_k|^2 / (2 (1 - t)^2))

A point is a row of T tokens with F numbers each. The time stands in the context's source, as `time_features`: the model
must read it (`--set model=fit_denoiser`). `integrate` follows a velocity from noise to data.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, squared_error
from jattn.nn.time_features import time_features
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key

LATEST = 0.99  # of the times: at 1 the best velocity is 0 / 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(Task):
    """Noisy points and their velocities.

    Attributes:
        tokens: T, of a point.
        features: F of a token.
        points: K, drawn once as normals of a fixed seed.
        time_size: numbers of the time's features.

    >>> batch = FlowMatching(tokens=8, features=3).sample(jax.random.key(0), 2)
    >>> batch.inputs.shape, batch.targets.shape, batch.context['source'].shape
    ((2, 8, 3), (2, 8, 3), (2, 1, 16))
    """

    kind: ClassVar[str] = 'continuous'

    tokens: int = 64
    features: int = 4
    points: int = 8
    time_size: int = 16

    def __post_init__(self) -> None:
        for name in ('tokens', 'features', 'points'):
            if getattr(self, name) < 1:
                raise ValueError(f'FlowMatching: {name} is {getattr(self, name)}, but must be at least 1')

    @property
    def input_size(self) -> int:
        return self.features

    @property
    def output_size(self) -> int:
        return self.features

    @functools.cached_property
    def known(self) -> np.ndarray:
        """The points, [K, T, F]."""
        shape = (self.points, self.tokens, self.features)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def sample(self, key: Key, batch: int) -> Batch:
        keys = jax.random.split(key, 3)
        x = jnp.asarray(self.known)[jax.random.randint(keys[0], (batch,), 0, self.points)]
        noise = jax.random.normal(keys[1], x.shape)
        times = jax.random.uniform(keys[2], (batch,), maxval=LATEST)
        t = times[:, None, None]
        return Batch(
            inputs=(1 - t) * noise + t * x,
            targets=x - noise,
            mask=jnp.ones(x.shape[:2]),
            context={'source': time_features(times, self.time_size)},
            meta={'times': times},
        )

    def velocity(self, x: Float[Array, 'B T F'], times: Float[Array, 'B']) -> Float[Array, 'B T F']:
        """The best one."""
        known, t = jnp.asarray(self.known, x.dtype), times[:, None]
        distances = jnp.sum(jnp.square(x[:, None] - t[..., None, None] * known[None]), axis=(2, 3))
        weights = jax.nn.softmax(-distances / (2 * jnp.square(1 - t)), axis=1)
        return (jnp.einsum('bk,ktf->btf', weights, known) - x) / (1 - t)[..., None]

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error of the velocity, summed over features."""
        return squared_error(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The squared error, and the squared distance to the best velocity."""
        best = self.velocity(batch.inputs, batch.meta['times'])
        return {'loss': self.loss(outputs, batch), 'distance/best': squared_error(outputs, best, batch.mask)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        return {'best': self.velocity(batch.inputs, batch.meta['times']), 'zero': jnp.zeros_like(batch.targets)}

    def facts(self) -> dict[str, float]:
        """The exact risk of a velocity of 0."""
        return {'zero': self.features + float(np.mean(np.sum(np.square(self.known), axis=-1)))}

    def tiny(self) -> 'FlowMatching':
        return dataclasses.replace(self, tokens=16, features=2, points=2)


def integrate(
    velocity: Callable[[Float[Array, 'B T F'], Float[Array, 'B']], Array], noise: Float[Array, 'B T F'], steps: int
) -> Float[Array, 'B T F']:
    """Follows a velocity (x, times) from noise at time 0 to data at time 1, by equal steps of Euler's method.

    >>> integrate(lambda x, times: jnp.ones_like(x), jnp.zeros((1, 1, 2)), 4).tolist()
    [[[1.0, 1.0]]]
    """

    def one(x: Array, n: Array) -> tuple[Array, None]:
        times = jnp.full(len(x), n / steps, x.dtype)
        return x + velocity(x, times) / steps, None

    return jax.lax.scan(one, noise, jnp.arange(steps))[0]
