"""Rows of packed documents, for the tests of mixers: parameters drawn anew, and the rows whole and in calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.contract import Context

X = np.asarray(jax.random.normal(jax.random.key(0), (2, 13, 32)))
PACKED = np.array([[0] * 2 + [3] * 4 + [0] + [4] * 6, [1] * 5 + [2] * 8], np.int32)
DOCUMENTS = ((0, 2, 6), (0, 7, 13), (1, 0, 5), (1, 5, 13))  # (row, start, end)


@functools.cache
def parameters(cfg):
    """Those of init moved at random, so that no published zero is an excuse."""
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), X))['params']
    random = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * random.normal(size=p.shape).astype(np.float32), params)


def assert_every_document_is(cfg, recurrence):
    """`recurrence(params, x [T, D], cfg) -> y` of each document alone, in float64."""
    p = parameters(cfg)
    with jax.enable_x64(True):
        packed = Context(segments=jnp.array(PACKED))
        y, _ = jax.jit(cfg.make().apply)({'params': p}, X.astype(np.float64), packed)
    for row, start, end in DOCUMENTS:
        np.testing.assert_allclose(y[row, start:end], recurrence(p, X[row, start:end], cfg), atol=1e-10)


def assert_calls_are(whole, cfg, variables, x, segments, size, atol=1e-5):
    """The outputs of the real tokens, in calls of `size` tokens handed on through the state."""
    run, state, outputs = jax.jit(cfg.make().apply), cfg.init_state(*x.shape[:2], jnp.float32), []
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        y, state = run(variables, x[:, part], Context(segments=jnp.array(segments[:, part])), state)
        outputs.append(y)
    real = segments > 0
    np.testing.assert_allclose(np.concatenate(outputs, 1)[real], np.asarray(whole)[real], atol=atol)
