"""The one public function of diagonal linear recurrences."""

import jax.numpy as jnp

from jattn.ops import segments as documents
from jattn.ops.scan.reference import step_scan
from jattn.ops.scan.xla import fast_scan
from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes

IMPLEMENTATIONS = {None: fast_scan, 'xla': fast_scan, 'reference': step_scan}


def linear_scan(
    a: Float[Array, 'B T F'],
    x: Float[Array, 'B T F'],
    *,
    initial_state: Float[Array, 'B F'] | None = None,
    return_state: bool = False,
    segments: Int32[Array, 'B T'] | None = None,
    implementation: str | None = None,
) -> Float[Array, 'B T F'] | tuple[Float[Array, 'B T F'], Float[Array, 'B F']]:
    """The diagonal linear recurrence of S4D, Mamba, RG-LRU and their like, in float32 at least.

        h_t = a_t h_{t-1} + x_t

    Args:
        a: decays, in [0, 1] for a stable state; 0 and 1 are exact. Complex decays go with complex inputs.
        x: inputs.
        initial_state: h_0, that of the document of the first real token; None: zero.
        return_state: whether the state after the last token comes back too.
        segments: document ids. Id 0 is padding: the state passes unchanged, h there is 0. A real token with another id
            than the last one before it starts from zero. None: one document.
        implementation: 'reference' (step by step, derivatives of any order), 'xla' (fast, a reverse derivative), or
            None: xla.

    Returns:
        h in the dtype of x, or (h, state) with the state of the last real token's document (without one, the initial
        state) in float32 at least.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an unknown implementation.

    >>> a, x = jnp.full((1, 4, 1), 0.5), jnp.ones((1, 4, 1))
    >>> linear_scan(a, x)[0, :, 0].tolist()
    [1.0, 1.5, 1.75, 1.875]
    >>> h, state = linear_scan(a, x, segments=jnp.array([[1, 1, 2, 0]]), return_state=True)
    >>> h[0, :, 0].tolist(), state.tolist()
    ([1.0, 1.5, 1.0, 0.0], [[1.0]])
    """
    sizes = axis_sizes(
        'linear_scan', a=(a, 'B T F'), x=(x, 'B T F'), initial_state=(initial_state, 'B F'), segments=(segments, 'B T')
    )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'linear_scan: implementation={implementation!r}, but one of {tuple(IMPLEMENTATIONS)} was expected'
        )
    for name, array in (('a', a), ('x', x)):
        if not jnp.issubdtype(array.dtype, jnp.inexact) or 0 in array.shape:
            raise ValueError(
                f'linear_scan: {name} is {array.dtype}{array.shape}, but a filled floating array was expected'
            )
    if jnp.iscomplexobj(a) and not jnp.iscomplexobj(x):
        raise ValueError(f'linear_scan: a is {a.dtype}, so a complex x was expected, not {x.dtype}')
    dtype = at_least_float32(a, x)
    if initial_state is None:
        initial_state = jnp.zeros((sizes['B'], sizes['F']), dtype)
    decays, updates, real = a.astype(dtype), x.astype(dtype), None
    if segments is not None:
        real = (segments != 0)[..., None]
        decays = jnp.where(real, jnp.where(documents.resets(segments)[..., None], 0, decays), 1)
        updates = jnp.where(real, updates, 0)
    states = IMPLEMENTATIONS[implementation](decays, updates, initial_state.astype(dtype))
    h = states if real is None else jnp.where(real, states, 0)
    h = h.astype(x.dtype)
    return (h, states[:, -1]) if return_state else h
