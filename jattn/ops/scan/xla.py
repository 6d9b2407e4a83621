"""The recurrence h_t = a_t h_{t−1} + x_t, fast on every backend, with a backward pass that is the same scan reversed:

    g_t = ∂L/∂h_t + a_{t+1} g_{t+1}      ∂L/∂x_t = g_t      ∂L/∂a_t = g_t h_{t−1}      ∂L/∂h_0 = a_1 g_1

so that the states are the only residual, and no gradient is divided by a decay (a = 0 is as good as any). On a CPU the
steps of `lax.scan` are quickest; elsewhere a tree of pairs (a, x) ∘ (a', x') = (a a', a' x + x') (Blelloch 1990) takes
2 log T passes in place of T. Which one is decided when the program is lowered for its device.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops.scan.reference import step_scan
from jattn.typing import Array, Float


@jax.custom_vjp
def fast_scan(
    a: Float[Array, 'B T F'], x: Float[Array, 'B T F'], initial_state: Float[Array, 'B F']
) -> Float[Array, 'B T F']:
    """All states h_1 .. h_T from the state before them; one dtype throughout."""
    return _scan(a, x, initial_state, reverse=False)


def _scan(a: Array, x: Array, initial_state: Array, reverse: bool) -> Array:
    forms = {'cpu': step_scan, 'default': tree_scan}
    forms = {platform: functools.partial(form, reverse=reverse) for platform, form in forms.items()}
    return lax.platform_dependent(a, x, initial_state, **forms)


def tree_scan(
    a: Float[Array, 'B T F'], x: Float[Array, 'B T F'], initial_state: Float[Array, 'B F'], reverse: bool = False
) -> Float[Array, 'B T F']:
    """The same as `step_scan`, joining ever longer stretches of time."""

    def join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    decays, states = lax.associative_scan(join, (a, x), axis=1, reverse=reverse)
    return states + decays * initial_state[:, None]


def _forward(a: Array, x: Array, initial_state: Array) -> tuple[Array, tuple]:
    states = fast_scan(a, x, initial_state)
    return states, (a, states, initial_state)


def _backward(residuals: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    a, states, initial_state = residuals
    before = jnp.concatenate([initial_state[:, None], states[:, :-1]], axis=1)
    after = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    g = _scan(after, gradient, jnp.zeros_like(initial_state), reverse=True)
    return g * before, g, a[:, 0] * g[:, 0]


fast_scan.defvjp(_forward, _backward)
