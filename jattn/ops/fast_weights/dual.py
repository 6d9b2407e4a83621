"""One chunk of a memory that learns while it reads: the dual form, in which no token has weights of its own.

A memory is a network whose weights are the state. Inside a chunk all inner gradients are taken at one set of weights W,
and every token's gradient of a layer is of rank one: e_i x_i^T, the layer's error times its input. The weights that
token t reads are therefore

    R_t = fixed + b_t fading + slope (b_t D_0 + f_t S_0 - sum_i G_ti e_i x_i^T)         (the table G: `coefficients.py`)

and a layer's product with them is masked linear attention over the chunk:

    R_t x'_t = fixed x'_t + b_t fading x'_t + slope (b_t D_0 x'_t + f_t S_0 x'_t - sum_i G_ti (x_i . x'_t) e_i)

so the queries pass through the network layer by layer, each product done like this. This holds for every architecture:
`forward(product, x)` is the network with its weight products left open. The errors come from `jax.vjp` with respect to
a perturbation of every product's result, never written by hand. (Derived for two layers in Sun et al. 2024, TTT; with
momentum and decay from Behrouz et al. 2025, Titans.)

A weight is a matrix [out, in], or a vector [n] whose product is the element-wise one. With [out, in + 1] a constant 1
is appended to the input: the last column is a bias.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.ops.fast_weights.coefficients import Coefficients
from jattn.typing import Array, Float

HIGHEST = lax.Precision.HIGHEST  # bf16 passes would show as wrong weights

Weights = tuple[Array, ...]
Product = Callable[[int, Array], Array]
Forward = Callable[[Product, Array], Array]


@struct.dataclass
class Parts:
    """The weights that a chunk reads: fixed + b_t fading + slope D_t; None stands for zeros (of slope: for ones).

    Attributes:
        fixed, fading: weights, at the chunk's start.
        slope: a number a weight, or one per token and weight [C, 1].
    """

    fixed: Weights | None
    fading: Weights | None
    slope: tuple[Array, ...] | None = None


@struct.dataclass
class Inner:
    """The inner gradients of a chunk in factors: of matrix l and token i outer(errors[l][i], inputs[l][i]).

    Attributes:
        errors: the loss's gradient by each product's result.
        inputs: what each product was taken of.
        ranks: 2 for a matrix, 1 for a vector (whose gradient is errors[l][i] * inputs[l][i]).
    """

    errors: tuple[Float[Array, 'C N'], ...]
    inputs: tuple[Float[Array, 'C N'], ...]
    ranks: tuple[int, ...] = struct.field(pytree_node=False)

    def total(self, share: Float[Array, 'C']) -> Weights:
        """sum_i share_i g_i, weight by weight."""
        return tuple(
            jnp.einsum('cm,cn->mn' if rank == 2 else 'cm,cm->m', share[:, None] * e, x, precision=HIGHEST)
            for e, x, rank in zip(self.errors, self.inputs, self.ranks)
        )

    def applied(self, layer: int, x: Float[Array, 'C N'], gradients: Float[Array, 'C S']) -> Float[Array, 'C N']:
        """Row t: (sum_i gradients_ti g_i) applied to x_t."""
        errors, inputs = self.errors[layer], self.inputs[layer]
        if self.ranks[layer] == 1:
            return x * jnp.einsum('cs,sm->cm', gradients, errors * inputs, precision=HIGHEST)
        if inputs.shape[1] > x.shape[1]:
            x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        scores = jnp.einsum('cn,sn->cs', x, inputs, precision=HIGHEST)
        return jnp.einsum('cs,sm->cm', gradients * scores, errors, precision=HIGHEST)


def apply(weight: Array, x: Float[Array, 'C N']) -> Float[Array, 'C N']:
    """The product of one weight with rows x."""
    if weight.ndim == 1:
        return x * weight[None, :]
    return jnp.einsum('cn,mn->cm', extend(x, weight), weight, precision=HIGHEST)


def extend(x: Float[Array, 'C N'], weight: Array) -> Float[Array, 'C N']:
    """x with a column of ones where the weight has a bias."""
    has_bias = weight.ndim == 2 and weight.shape[1] == x.shape[1] + 1
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1) if has_bias else x


def inner_gradients(
    forward: Forward, error: Callable[[Array], Array], weights: Weights, k: Float[Array, 'C K']
) -> Inner:
    """All tokens' gradients at the given weights; `error` maps predictions [C, V] to the loss's gradient by them."""

    def predict(shifts: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        inputs = {}

        def product(layer: int, x: Array) -> Array:
            inputs[layer] = extend(x, weights[layer])
            return apply(weights[layer], x) + shifts[layer]

        return forward(product, k), tuple(inputs[layer] for layer in range(len(weights)))

    tokens, dtype = k.shape[0], k.dtype
    shifts = tuple(jnp.zeros((tokens, weight.shape[0]), dtype) for weight in weights)
    prediction, pull, inputs = jax.vjp(predict, shifts, has_aux=True)
    return Inner(pull(error(prediction))[0], inputs, tuple(weight.ndim for weight in weights))


def read(
    forward: Forward,
    q: Float[Array, 'C K'],
    inner: Inner,
    table: Coefficients,
    parts: Parts,
    change: Weights | None,
    momentum: Weights | None,
) -> Float[Array, 'C V']:
    """The outputs of a chunk: the network on q, every product with the weights that its token reads.

    Args:
        forward: the network.
        q: queries.
        inner: the chunk's gradients (with a window also those of the tokens before it).
        table: the chunk's coefficients.
        parts: of the weights read.
        change: D_0; None: zeros, the chunk begins here.
        momentum: S_0; None: no momentum.
    """
    kept = table.kept[:, None]

    def product(layer: int, x: Array) -> Array:
        changed = -inner.applied(layer, x, table.gradients)
        if change is not None:
            changed += kept * apply(change[layer], x)
        if momentum is not None:
            changed += table.carried[:, None] * apply(momentum[layer], x)
        y = changed if parts.slope is None else parts.slope[layer] * changed
        if parts.fixed is not None:
            y += apply(parts.fixed[layer], x)
        if parts.fading is not None:
            y += kept * apply(parts.fading[layer], x)
        return y

    return forward(product, q)


def accumulate(
    inner: Inner, table: Coefficients, change: Weights | None, momentum: Weights | None
) -> tuple[Weights, Weights | None]:
    """D_C and S_C, the change and the momentum after the chunk's last token."""

    after = [-g for g in inner.total(table.gradients[-1])]
    if change is not None:
        after = [d + table.kept[-1] * old for d, old in zip(after, change)]
    if momentum is None:
        return tuple(after), None
    after = [d + table.carried[-1] * s for d, s in zip(after, momentum)]
    own = inner.total(table.momentum_gradients)
    return tuple(after), tuple(table.momentum_kept * s - g for s, g in zip(momentum, own))
