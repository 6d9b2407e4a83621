"""What heads cost: multi-head attention pooling as it is written and with its projections absorbed, and EP.

    naive       softmax_t(q_h . W_K^h x_t) W_V^h x_t, then W_O         keys and values of every token
    absorbed    u_h = W_K^h q_h first, the mean of the tokens next, then W_V^h and W_O: EP's shape
    EP          u_j . x_t, the mean of the tokens, then V_j; as published V_j x_t of every token

Forward and backward to the parameters; the tokens are frozen and have no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.papers import cost
from experiments.papers.efficient_probing.settings import Size
from jattn.flops import count_flops
from jattn.typing import Array, Float

NAIVE, ABSORBED, EP, PUBLISHED = 'multi-head, naive', 'multi-head, absorbed', 'EP', 'EP, values of every token'
Params = dict[str, Array]


def measure(size: Size, repeats: int = 7) -> tuple[dict[str, cost.Cost], dict[str, int]]:
    """Time and memory of each head, and the operations of its forward pass."""
    makes, flops = {}, {}
    for name, head in HEADS.items():
        params, x = _arguments(size, name)
        flops[name] = count_flops(head, params, x)
        makes[name] = lambda tokens, head=head, params=params, x=x: (
            jax.grad(lambda params, x: jnp.sum(jnp.sin(head(params, x)))),
            (params, x),
        )
    return cost.measure(makes, (size.tokens,), repeats), flops


def naive(params: Params, x: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    """Multi-head attention pooling as it is written."""
    keys, values = (jnp.einsum('btd,dhk->bthk', x, params[name]) for name in ('k', 'v'))
    maps = jax.nn.softmax(jnp.einsum('hk,bthk->bht', params['q'], keys) / params['q'].shape[1] ** 0.5)
    return jnp.einsum('bhk,hkd->bd', jnp.einsum('bht,bthk->bhk', maps, values), params['o'])


def absorbed(params: Params, x: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    """The same numbers, the projections of tokens absorbed."""
    queries = jnp.einsum('hk,dhk->hd', params['q'], params['k']) / params['q'].shape[1] ** 0.5
    means = _means(queries, x)
    return jnp.einsum('bhk,hkd->bd', jnp.einsum('bhd,dhk->bhk', means, params['v']), params['o'])


def efficient(params: Params, x: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    """Efficient probing as the library has it: the mean first."""
    means = _means(params['u'] / x.shape[-1] ** 0.5, x)
    return jnp.einsum('bqd,dqv->bqv', means, params['v']).reshape(len(x), -1)


def published(params: Params, x: Float[Array, 'B T D']) -> Float[Array, 'B D']:
    """The same numbers as the authors have it: the values of every token."""
    maps = jax.nn.softmax(jnp.einsum('qd,btd->bqt', params['u'] / x.shape[-1] ** 0.5, x))
    values = jnp.einsum('btd,dqv->btqv', x, params['v'])
    return jnp.einsum('bqt,btqv->bqv', maps, values).reshape(len(x), -1)


HEADS: dict[str, Callable[[Params, Array], Array]] = {
    NAIVE: naive,
    ABSORBED: absorbed,
    EP: efficient,
    PUBLISHED: published,
}


def _means(queries: Float[Array, 'Q D'], x: Float[Array, 'B T D']) -> Float[Array, 'B Q D']:
    return jnp.einsum('bqt,btd->bqd', jax.nn.softmax(jnp.einsum('qd,btd->bqt', queries, x)), x)


def _arguments(size: Size, name: str) -> tuple[Params, Array]:
    width, heads, queries = size.timed_width, size.timed_heads, size.timed_queries
    shapes = {'u': (queries, width), 'v': (width, queries, width // queries)}
    if name in (NAIVE, ABSORBED):
        split = (heads, width // heads)
        shapes = {'q': split, 'k': (width, *split), 'v': (width, *split), 'o': (*split, width)}
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    params = {name: jax.random.normal(key, shape) * width**-0.5 for key, (name, shape) in zip(keys, shapes.items())}
    return params, jax.random.normal(keys[-1], (size.rows, size.tokens, width))
