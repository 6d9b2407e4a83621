"""Parameters for tests: away from where they start, so that what begins as zero or one is seen to count."""

import jax
from flax import linen as nn


def perturbed(variables, scale, seed=2):
    """Variables with noise of a deviation on every leaf, without the boxes of logical names."""
    leaves, tree = jax.tree.flatten(nn.unbox(variables))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def perturbed_params(cfg, inputs, scale):
    """The parameters of a trunk from its own start, with noise."""
    return perturbed(jax.jit(cfg.make().init)(jax.random.key(0), inputs)['params'], scale)
