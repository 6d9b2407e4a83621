"""Fits a small model to a sampler: many steps per compiled call, the batches drawn inside.

`loss(params, key)` draws its own batch from the key, so there is no input pipeline: a one-layer model takes several
hundred steps a second on a CPU, where one dispatch a step would cost more than the step.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jattn.typing import Array, Key, PyTree

Loss = Callable[[PyTree, Key], Array]


@functools.partial(jax.jit, static_argnames=('loss', 'optimizer', 'steps'))
def _many_steps(
    params: PyTree,
    state: PyTree,
    key: Key,
    start: Array,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[PyTree, PyTree, Array]:
    def one_step(carry: tuple[PyTree, PyTree], step: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(key, step))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.lax.scan(one_step, (params, state), start + jnp.arange(steps))
    return params, state, jnp.mean(losses)


def fit(
    params: PyTree,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Key,
    steps_per_call: int = 500,
    watch: Callable[[PyTree], PyTree] | None = None,
) -> tuple[PyTree, dict[str, PyTree]]:
    """Minimises `loss(params, key of the step)`.

    Fits that share the `loss` and `optimizer` objects (several seeds) compile once.

    Args:
        params: where to start.
        loss: the loss of one step, a scalar; step n's key is fold_in(key, n).
        optimizer: an optax transformation; its schedule counts steps.
        steps: how many; a multiple of `steps_per_call`.
        key: root of the steps' keys.
        steps_per_call: the length of the scan.
        watch: what to keep of the parameters after every call.

    Returns:
        The fitted parameters and {loss: [calls] means of a call's losses, step: [calls], watched: stacked}.

    Raises:
        ValueError: `steps` is not a positive multiple of `steps_per_call`.
        FloatingPointError: a call's mean loss is not finite; says after which step.

    >>> fitted, trace = fit(jnp.float32(3.0), lambda p, key: p**2, optax.sgd(0.1), 40, jax.random.key(0), 20)
    >>> bool(abs(fitted) < 0.01), trace['step'].tolist()
    (True, [20, 40])
    """
    if steps < 1 or steps % steps_per_call:
        raise ValueError(f'fit: steps is {steps}, but must be a positive multiple of steps_per_call, {steps_per_call}')
    state = optimizer.init(params)
    means, watched = [], []
    for start in range(0, steps, steps_per_call):
        params, state, mean = _many_steps(params, state, key, start, loss, optimizer, steps_per_call)
        if not np.isfinite(mean):
            raise FloatingPointError(f'fit: the loss is {mean} within {steps_per_call} steps after step {start}')
        means.append(float(mean))
        watched.append(watch(params) if watch else None)
    trace = {
        'loss': np.array(means),
        'step': np.arange(steps_per_call, steps + 1, steps_per_call),
        'watched': jax.tree.map(lambda *leaves: np.stack(leaves), *watched),
    }
    return params, trace
