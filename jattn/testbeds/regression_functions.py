"""Classes of real functions of F Gaussian numbers: how one is drawn, its value, its variance. One table, `FUNCTIONS`.

| name          | f(x)                                    | one function                               | E f^2   |
| ------------- | --------------------------------------- | ------------------------------------------ | ------- |
| linear        | w . x                                   | w ~ N(0, I)                                | F       |
| sparse_linear | w . x                                   | as linear, all but s coordinates set to 0  | s       |
| quadratic     | sum_i w_i x_i^2 / sqrt(3)               | w ~ N(0, I)                                | F       |
| relu_net      | sqrt(2/h) sum_j v_j relu(W_j . x)       | v, W ~ N(0, I), h hidden units, no biases  | F       |
| decision_tree | value of the leaf that x falls into     | below                                      | 1       |

A tree of depth D has inner nodes 0 .. 2^D - 2, each with one coordinate, drawn uniformly, and leaves 2^D - 1 .. 2^(D+1)
- 2 with values N(0, 1). From node j a point goes on to 2j + 1, or to 2j + 2 where its coordinate is positive.

Of Garg et al. (2022); the variances are exact for x ~ N(0, I) (E x^4 = 3, E relu(W . x)^2 = |x|^2 / 2) and are what the
published curves are divided by. In a curriculum only the first k coordinates of x are not 0: as published, a sparse
function is drawn within these, every other one is drawn in full size.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn.typing import Array, Float, Int32, Key

Params = dict[str, Array]  # what tells one function


class Sizes(NamedTuple):
    """The sizes of all classes.

    Attributes:
        dim: F, coordinates of x.
        support: s, coordinates that a sparse function reads.
        hidden: h, units of a network.
        depth: D, of a tree.
    """

    dim: int
    support: int = 3
    hidden: int = 100
    depth: int = 4


class Function(NamedTuple):
    """A class of functions.

    Attributes:
        draw: (key, sizes, how many coordinates of x are not 0) -> what tells one function; `vmap` draws many.
        value: (what tells it, points [S, F]) -> values [S].
        variance: sizes -> E f(x)^2 over functions and x ~ N(0, I).
    """

    draw: Callable[[Key, Sizes, int | Int32[Array, '']], Params]
    value: Callable[[Params, Float[Array, 'S F']], Float[Array, 'S']]
    variance: Callable[[Sizes], float]


def draw_linear(key: Key, sizes: Sizes, dims: int | Int32[Array, '']) -> Params:
    """Weights of every coordinate, those that are 0 included: the variance of f grows with them."""
    return {'weights': jax.random.normal(key, (sizes.dim,))}


def draw_sparse(key: Key, sizes: Sizes, dims: int | Int32[Array, '']) -> Params:
    """Weights of `support` different ones of the first `dims` coordinates.

    >>> weights = draw_sparse(jax.random.key(0), Sizes(dim=8, support=3), 4)['weights']
    >>> int(jnp.sum(weights != 0)), int(jnp.sum(weights[4:] != 0))
    (3, 0)
    """
    weight_key, support_key = jax.random.split(key)
    order = jax.random.uniform(support_key, (sizes.dim,))
    chosen = jax.lax.top_k(jnp.where(jnp.arange(sizes.dim) < dims, order, -1.0), sizes.support)[1]
    is_read = jnp.zeros(sizes.dim, bool).at[chosen].set(True)
    return {'weights': jnp.where(is_read, jax.random.normal(weight_key, (sizes.dim,)), 0)}


def draw_net(key: Key, sizes: Sizes, dims: int | Int32[Array, '']) -> Params:
    """Weights of both layers."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.normal(first_key, (sizes.dim, sizes.hidden))
    return {'first': first, 'second': jax.random.normal(second_key, (sizes.hidden,))}


def draw_tree(key: Key, sizes: Sizes, dims: int | Int32[Array, '']) -> Params:
    """A coordinate for each inner node, a value for each leaf."""
    node_key, leaf_key = jax.random.split(key)
    leaves = 2**sizes.depth
    coordinates = jax.random.randint(node_key, (leaves - 1,), 0, sizes.dim, jnp.int32)
    return {'coordinates': coordinates, 'leaves': jax.random.normal(leaf_key, (leaves,))}


def linear(params: Params, x: Float[Array, 'S F']) -> Float[Array, 'S']:
    """w . x, by sums and not by a matrix product, which an accelerator would round."""
    return jnp.sum(x * params['weights'][None], axis=-1)


def quadratic(params: Params, x: Float[Array, 'S F']) -> Float[Array, 'S']:
    """sum_i w_i x_i^2 / sqrt(3).

    >>> float(quadratic({'weights': jnp.array([3.0**0.5, 9.0])}, jnp.array([[2.0, 0.0]]))[0])
    4.0
    """
    return linear(params, jnp.square(x)) / math.sqrt(3)


def net(params: Params, x: Float[Array, 'S F']) -> Float[Array, 'S']:
    """sqrt(2/h) sum_j v_j relu(W_j . x).

    >>> weights = {'first': jnp.array([[1.0, -1.0]]), 'second': jnp.array([5.0, 7.0])}
    >>> net(weights, jnp.array([[2.0], [-1.0]])).tolist()
    [10.0, 7.0]
    """
    hidden = jax.nn.relu(jnp.matmul(x, params['first'], precision=jax.lax.Precision.HIGHEST))
    return math.sqrt(2 / len(params['second'])) * linear({'weights': params['second']}, hidden)


def tree(params: Params, x: Float[Array, 'S F']) -> Float[Array, 'S']:
    """The value of the leaf that each point falls into.

    >>> weights = {'coordinates': jnp.array([1, 0, 0]), 'leaves': jnp.array([10.0, 11.0, 12.0, 13.0])}
    >>> tree(weights, jnp.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])).tolist()
    [10.0, 11.0, 12.0, 13.0]
    """
    return params['leaves'][tree_leaf(params['coordinates'], x)]


def tree_leaf(coordinates: Int32[Array, 'N'], x: Float[Array, 'S F']) -> Int32[Array, 'S']:
    """Which leaf each point falls into, counted from 0."""
    node = jnp.zeros(len(x), jnp.int32)
    for _ in range((len(coordinates) + 1).bit_length() - 1):
        tested = jnp.take_along_axis(x, coordinates[node][:, None], axis=1)[:, 0]
        node = 2 * node + 1 + (tested > 0)
    return node - len(coordinates)


FUNCTIONS: dict[str, Function] = {
    'linear': Function(draw_linear, linear, lambda sizes: float(sizes.dim)),
    'sparse_linear': Function(draw_sparse, linear, lambda sizes: float(sizes.support)),
    'quadratic': Function(draw_linear, quadratic, lambda sizes: float(sizes.dim)),
    'relu_net': Function(draw_net, net, lambda sizes: float(sizes.dim)),
    'decision_tree': Function(draw_tree, tree, lambda sizes: 1.0),
}
