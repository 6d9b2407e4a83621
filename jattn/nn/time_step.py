"""Where Mamba's time steps start, and those of every memory that decays by one."""

import math

import jax
import jax.numpy as jnp

from jattn.typing import Array, Key, Shape

TIME_STEPS = (1e-3, 0.1)


def time_step_bias(key: Key, shape: Shape, dtype: jnp.dtype) -> Array:
    """Biases b with softplus(b) log-uniform between TIME_STEPS (Gu and Dao 2023).

    >>> dt = jax.nn.softplus(time_step_bias(jax.random.key(0), (1000,), jnp.float32))
    >>> bool(jnp.min(dt) > 0.999e-3), bool(jnp.max(dt) < 0.1001)
    (True, True)
    """
    low, high = (math.log(step) for step in TIME_STEPS)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))
