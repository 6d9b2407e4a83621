"""Readable values: one line in a module names a value, and any tool can capture or edit it.

    z = tap(self, 'z', z)

`tap` sows the value into the Flax collection `taps`, and where the collection `edits` holds an `Edit` at the module's
path, changes it first. Nothing happens unless a caller asks:

    logits, captured = model.apply({'params': params, 'edits': edits}, tokens, mutable=['taps'])

This is pure and works under jit, grad, vmap, `lax.map`, `nn.scan` and `nn.remat`; the compiler drops unread taps.
Scores and patterns exist only on the reference path of attention, so they have a collection of their own, `patterns`:
`wants_patterns` says whether somebody asks. An edit may be a function of the value (`Edit.value`). The public door is
`jattn.understanding.capture`, which checks the names.

The sites and their shapes: embed, resid_pre, attn_out, resid_mid, mlp_out, resid_post [B,T,D]; attn_in, cross_in and
mlp_in [B,T,D], what a part reads of the stream, before its norm (an edit there reaches that part alone); mlp_act
[B,T,F]; q [B,T,H,K], k [B,T,G,K], v [B,T,G,V] (before rotation); z [B,T,H,V], what the heads hand to the output
projection; logits [B,T,E]; scores, pattern [B,H,T,S]; gates and state as each recurrent mixer documents.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.typing import Array, Bool

TAPS, PATTERNS, EDITS = 'taps', 'patterns', 'edits'
COLLECTIONS = (TAPS, PATTERNS, EDITS)
Function = Callable[[Array, Array | None], Array]  # of the value and who sees whom; a struct, whose arrays are data


@struct.dataclass
class Edit:
    """A change to the value at a site: where(mask, value, x * scale + add); every part broadcasts, None leaves it out.

    `value` without `mask` replaces everything. All parts are arrays, so a sweep over heads or layers compiles once, and
    the gradient with respect to `add` is that of the site.

    Where what takes the place depends on what stood there, `value` is a function: a `flax.struct` whose arrays are data
    like the others, called as `value(x * scale + add, visible)`.

    >>> Edit(scale=jnp.array([0.0, 1.0]))(jnp.ones((2, 2))).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    >>> squared = jax.tree_util.Partial(lambda power, x, visible: x**power, 2)
    >>> Edit(value=squared, mask=jnp.array([True, False]))(jnp.full((2, 2), 3.0)).tolist()
    [[9.0, 3.0], [9.0, 3.0]]
    """

    scale: Array | None = None
    add: Array | None = None
    value: Array | Function | None = None
    mask: Array | None = None

    def __call__(self, x: Array, visible: Bool[Array, 'B T S'] | None = None) -> Array:
        """The edited x, in x's own shape and dtype."""
        y = x
        with jax.numpy_rank_promotion('allow'):  # an edit broadcasts over what it does not name
            if self.scale is not None:
                y = y * self.scale
            if self.add is not None:
                y = y + self.add
            if self.value is not None:
                value = self.value(y, visible) if callable(self.value) else self.value
                y = jnp.where(True if self.mask is None else self.mask, value, y)
        return jnp.broadcast_to(y, x.shape).astype(x.dtype)


def tap(
    module: nn.Module,
    site: str,
    value: Array,
    collection: str = TAPS,
    visible: Bool[Array, 'B T S'] | None = None,
) -> Array:
    """Names a value: returns it, edited if an `Edit` stands at the module's path, and sows it where asked for.

    `visible` is who sees whom at the site `pattern`, for edits that are functions; None: everybody sees everybody.
    """
    if module.is_initializing():
        return value
    if module.has_variable(EDITS, site):
        value = module.get_variable(EDITS, site)(value, visible)
    module.sow(collection, site, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


def captures(module: nn.Module, collection: str = TAPS) -> bool:
    """Whether the caller asked for this collection, so that a value made only to be read is worth making."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def wants_patterns(module: nn.Module, sites: tuple[str, ...] = ('scores', 'pattern')) -> bool:
    """Whether somebody reads or edits this module's patterns: the reference path is needed."""
    return captures(module, PATTERNS) or any(module.has_variable(EDITS, site) for site in sites)
