"""One module alone on one row, forward: what the cost tables of mixers and poolers time."""

import dataclasses

import jax

from experiments.papers.cost import Make
from jattn.contract import MixerConfig
from jattn.poolers.pooler import PoolerConfig


def forward(cfg: MixerConfig | PoolerConfig, width: int, rows: int = 1) -> Make:
    """For `cost.measure`: T -> the module's outputs as a function of parameters and tokens.

    >>> from jattn.poolers import MeanConfig
    >>> function, arguments = forward(MeanConfig(), 4)(8)
    >>> function(*arguments).shape
    (1, 4)
    """
    module = dataclasses.replace(cfg, width=width).make()

    def make(tokens: int) -> tuple:
        x = jax.random.normal(jax.random.key(0), (rows, tokens, width))
        variables = jax.jit(module.init)(jax.random.key(1), x[:, :16])
        return lambda variables, x: module.apply(variables, x)[0], (variables, x)

    return make


def parameters(cfg: MixerConfig | PoolerConfig, width: int) -> int:
    """How many numbers the module learns.

    >>> from jattn.poolers import LAMAConfig
    >>> parameters(LAMAConfig(heads=8, project=False), 64)
    1024
    """
    module = dataclasses.replace(cfg, width=width).make()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, width), 'float32'))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes.get('params', {})))
