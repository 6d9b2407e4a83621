"""Counts the operations of matrix products and convolutions in a traced program, loops times their length."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function: Callable, *args: Any) -> int:
    """2 * multiply-adds of every dot_general and convolution that `function(*args)` runs (the dearest of a cond).

    >>> x = jax.ShapeDtypeStruct((4, 4), 'float32')
    >>> count_flops(lambda x: x @ x, x)
    128
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


@functools.lru_cache(maxsize=256)
def traced_flops(cfg: Any, tokens: int) -> int:
    """`MixerConfig.flops` of a mixer whose inner networks are any function: counted in its traced forward pass."""
    mixer, x = cfg.make(), jax.ShapeDtypeStruct((1, tokens, cfg.require_width()), 'float32')
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
    return count_flops(lambda variables, x: mixer.apply(variables, x)[0], variables, x)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            lhs, out = equation.invars[0].aval, equation.outvars[0].aval
            total += 2 * math.prod(out.shape) * math.prod(lhs.shape[axis] for axis in contracted)
        elif name == 'conv_general_dilated':
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            features = equation.params['dimension_numbers'].rhs_spec[0]
            total += 2 * math.prod(out.shape) * math.prod(kernel.shape) // kernel.shape[features]
        elif name == 'while':
            assert not _count(equation.params['body_jaxpr'].jaxpr), 'a product in a loop of unknown length'
        elif name == 'cond':
            total += max(_count(branch.jaxpr) for branch in equation.params['branches'])
        elif name != 'pallas_call':
            times = equation.params.get('length', 1) if name == 'scan' else 1
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
