"""The recurrence h_t = a_t h_{t−1} + x_t, step by step."""

import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float


def step_scan(
    a: Float[Array, 'B T F'], x: Float[Array, 'B T F'], initial_state: Float[Array, 'B F'], reverse: bool = False
) -> Float[Array, 'B T F']:
    """All states h_1 .. h_T from the state before them (reverse: from the one after them, last first); one dtype."""

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, update = now
        state = decay * state + update
        return state, state

    _, states = lax.scan(step, initial_state, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(x, 1, 0)), reverse=reverse)
    return jnp.moveaxis(states, 0, 1)
