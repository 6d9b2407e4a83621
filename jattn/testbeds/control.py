"""Offline reinforcement learning as a sequence: actions of good and bad pilots, told by the return that they reached.

    s_{t+1} = A s_t + B a_t + N(0, noise^2)       s = (place, speed)       reward_t = -(|s_t|^2 + effort a_t^2) / T
    pilot of skill g in 0..1:   a_t = -g K s_t + (1 - g) N(0, 1) + N(0, jitter^2)

A mass on a line is to be held at 0; K is the gain that is best for it (the stationary solution of Riccati's equation).
Every row is one flight of a pilot of a random skill. As in the Decision Transformer (Chen et al. 2021), but with one
token a step, what is read is the return still to come, the state and the last action, what is to be said the action:

    inputs_t = (sum_{i >= t} reward_i, s_t, a_{t-1})        targets_t = a_t

A model that is told a high return should fly well: `fly` closes the loop with any policy. Scores are on the scale of
`facts`: 0 for who does nothing, 1 for the best gain.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, squared_error
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key, PyTree

STEP = 0.2
MOVE = np.array([[1.0, STEP], [0.0, 1.0]])  # A
PUSH = np.array([0.0, STEP])  # B
Policy = Callable[[PyTree, Float[Array, 'B F']], tuple[PyTree, Float[Array, 'B']]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control(Task):
    """Flights of pilots of every skill.

    Attributes:
        tokens: T, steps of a flight.
        noise: of the state, a step.
        effort: what an action costs beside the state.
        jitter: of every pilot's actions, the best included: the floor of the loss is its square.

    >>> batch = Control(tokens=8).sample(jax.random.key(0), 2)
    >>> batch.inputs.shape, batch.targets.shape
    ((2, 8, 4), (2, 8, 1))
    """

    kind: ClassVar[str] = 'continuous'
    input_size: ClassVar[int] = 4
    output_size: ClassVar[int] = 1

    tokens: int = 40
    noise: float = 0.1
    effort: float = 0.1
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f'Control: tokens={self.tokens} must be at least 2')
        for name in ('noise', 'effort', 'jitter'):
            if getattr(self, name) <= 0:
                raise ValueError(f'Control: {name}={getattr(self, name)} must be positive')

    def sample(self, key: Key, batch: int) -> Batch:
        skill_key, action_key, flight_key = jax.random.split(key, 3)
        skill = jax.random.uniform(skill_key, (batch,))
        draws = jax.random.normal(action_key, (self.tokens, 2, batch))

        def pilot(step: Array, seen: Float[Array, 'B F']) -> tuple[Array, Float[Array, 'B']]:
            wild, jitter = draws[step]
            return step + 1, skill * self.best_action(seen[:, 1:3]) + (1 - skill) * wild + self.jitter * jitter

        inputs, actions, _ = self.fly(flight_key, pilot, jnp.int32(0), batch, 0.0)
        rewards = self.rewards(inputs[..., 1:3], actions)
        to_come = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
        return Batch(
            inputs=inputs.at[..., 0].set(to_come),
            targets=actions[..., None],
            mask=jnp.ones(actions.shape),
            meta={'skill': skill},
        )

    def fly(
        self, key: Key, policy: Policy, state: PyTree, batch: int, told: float
    ) -> tuple[Float[Array, 'B T F'], Float[Array, 'B T'], Float[Array, 'B']]:
        """Flights of a policy; equal keys are equal starts and equal winds.

        Args:
            key: of starts and noise.
            policy: (its state, what it is told and sees [B, F]) -> (its state, actions [B]).
            state: of the policy, before the first step.
            batch: B.
            told: the return that it is told to reach; what was reached is taken off it.

        Returns:
            What the policy saw [B, T, F], its actions [B, T], and its returns [B].
        """
        start_key, noise_key = jax.random.split(key)
        start = jax.random.normal(start_key, (batch, 2))
        noise = self.noise * jax.random.normal(noise_key, (self.tokens, batch, 2))

        def step(carry: tuple, noise: Float[Array, 'B 2']) -> tuple[tuple, tuple]:
            state, place, last, to_come = carry
            seen = jnp.concatenate([to_come[:, None], place, last[:, None]], axis=-1)
            state, action = policy(state, seen)
            reward = self.rewards(place, action)
            after = place @ MOVE.T.astype(place.dtype) + action[:, None] * PUSH.astype(place.dtype)[None] + noise
            return (state, after, action, to_come - reward), (seen, action, reward)

        carry = (state, start, jnp.zeros(batch), jnp.full(batch, told))
        _, (seen, actions, rewards) = jax.lax.scan(step, carry, noise)
        return jnp.moveaxis(seen, 0, 1), actions.T, jnp.sum(rewards, axis=0)

    def rewards(self, place: Float[Array, '*B 2'], action: Float[Array, '*B']) -> Float[Array, '*B']:
        """The reward of a step; a flight's sum is a mean."""
        return -(jnp.sum(jnp.square(place), axis=-1) + self.effort * jnp.square(action)) / self.tokens

    def best_action(self, place: Float[Array, 'B 2']) -> Float[Array, 'B']:
        """-K s."""
        return -place @ jnp.asarray(_gain(self.effort), place.dtype)

    def loss(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> Mean:
        """Squared error of the action."""
        return squared_error(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> dict[str, Mean]:
        """loss."""
        return {'loss': self.loss(outputs, batch)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """`skill`: the pilot's mean action, for who knows the pilot; `best`: that of the best pilot."""
        best = self.best_action(batch.inputs[..., 1:3].reshape(-1, 2)).reshape(batch.inputs.shape[:2])
        return {'skill': (batch.meta['skill'][:, None] * best)[..., None], 'best': best[..., None]}

    def facts(self) -> dict[str, float]:
        """Mean returns of doing nothing and of the best gain; squared errors of who knows the pilot.

        With skill uniform in 0..1 the mean of (1 - g)^2 is a third.
        """
        return {
            'nothing': self._mean_return(np.zeros(2)),
            'best': self._mean_return(_gain(self.effort)),
            'skill': 1 / 3 + self.jitter**2,
        }

    def _mean_return(self, gain: np.ndarray) -> float:
        """Of the policy -gain s, exactly: the covariance of the state is carried along."""
        closed, weight = MOVE - np.outer(PUSH, gain), np.eye(2) + self.effort * np.outer(gain, gain)
        covariance, total = np.eye(2), 0.0
        for _ in range(self.tokens):
            total -= float(np.trace(weight @ covariance)) / self.tokens
            covariance = closed @ covariance @ closed.T + self.noise**2 * np.eye(2)
        return total

    def tiny(self) -> 'Control':
        return dataclasses.replace(self, tokens=12)


@functools.cache
def _gain(effort: float) -> np.ndarray:
    """K, from Riccati's equation by iteration.

    >>> _gain(0.1).round(3).tolist()
    [2.121, 3.176]
    """
    cost = np.eye(2)
    for _ in range(1000):
        gain = PUSH @ cost @ MOVE / (effort + PUSH @ cost @ PUSH)
        closed = MOVE - np.outer(PUSH, gain)
        cost = np.eye(2) + effort * np.outer(gain, gain) + closed.T @ cost @ closed
    return gain
