"""What a model has at the last token of prompts, before its first layer and behind every one.

Prompts are padded on the right, to few lengths: what stands behind a token changes nothing in it.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.real_model import Real
from jattn.typing import Array, Float, Int32, PyTree
from jattn.understanding import capture, lens

STEP = 16  # lengths are multiples of it: each is compiled once


def last_tokens(real: Real, params: PyTree, rows: Sequence[Sequence[int]], batch: int = 32) -> Float[Array, 'L+1 N D']:
    """The stream at the last token of every row.

    Args:
        real: whose model.
        params: its parameters, or others of the same shapes.
        rows: N lists of tokens.
        batch: rows that run at once.
    """
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for start in range(0, len(order), batch):
        own = order[start : start + batch]
        length = -(-len(rows[own[0]]) // STEP) * STEP
        tokens = np.zeros((batch, length), np.int32)
        for at, n in enumerate(own):
            tokens[at, : len(rows[n])] = rows[n]
        last = np.array([len(rows[n]) - 1 for n in own] + [0] * (batch - len(own)), np.int32)
        stream = np.asarray(_last(real.model, params, jnp.asarray(tokens), jnp.asarray(last)))
        for at, n in enumerate(own):
            found[n] = stream[:, at]
    return jnp.asarray(np.stack(found, axis=1))


def first_words(real: Real, stream: Float[Array, 'N D'], words: Sequence[str]) -> Float[Array, 'N E']:
    """The logits of words' first tokens behind the last layer."""
    ids = jnp.array([real.encode(word)[0] for word in words])
    said = jax.jit(lambda params, stream: lens.read_out(real.model, params, stream)[:, ids])
    return jnp.concatenate([said(real.params, stream[n : n + 100]) for n in range(0, len(stream), 100)])


@functools.partial(jax.jit, static_argnums=0)
def _last(
    model: nn.Module, params: PyTree, tokens: Int32[Array, 'B T'], last: Int32[Array, 'B']
) -> Float[Array, 'L+1 B D']:
    """Inside one program the logits, which nobody reads, are not computed."""
    found = capture.run(model, params, tokens, sites=('resid_pre', 'resid_post'))
    stream = jnp.concatenate([found.stack('resid_pre')[:1], found.stack('resid_post')])
    return jnp.take_along_axis(stream, last[None, :, None, None], axis=2)[:, :, 0]
