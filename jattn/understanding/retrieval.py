"""Retrieval heads: who copies a fact from the context, token by token (Wu et al. 2024, "Retrieval Head").

    j = argmax_s pattern[t, s]        of the query t that produces answer token x_{t+1}
    hit      j is in the needle, and x_j = x_{t+1}: the token that is looked at is the one that is written
    score    hits / tokens of the needle, the mean over the rows whose answer is right

The query that counts is the one before the answer token, which makes the score one of induction and not of looking at
oneself. Rows are teacher-forced: one pass gives all queries, and where the model answers rightly they are those of
decoding. A row counts where more than half of its answer's tokens are the likeliest, as in the published code, whose
rows are decoded. A needle's token that is copied twice counts twice, also as there; `distinct` counts it once, the
paper's formula. A head is a query head.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, Int32, PyTree, axis_sizes
from jattn.understanding import capture

KEPT = 0.5  # a row is kept above this share of right answer tokens


@struct.dataclass
class RetrievalScores:
    """Scores by head.

    Attributes:
        layers: the layers that have patterns, one a row of `scores`.
        scores: [L, H], means over the kept rows; NaN where none is.
        recall: [B], of each row, the share of answer tokens that are the likeliest.
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    scores: Float[Array, 'L H']
    recall: Float[Array, 'B']

    def ranked(self) -> list[tuple[int, int]]:
        """(layer, head), the highest score first."""
        order = jnp.argsort(-self.scores.reshape(-1), stable=True).tolist()
        heads = self.scores.shape[1]
        return [(self.layers[n // heads], n % heads) for n in order]


def hits(
    pattern: Float[Array, '*L H T T'],
    tokens: Int32[Array, 'T'],
    needle: Bool[Array, 'T'],
    answer: Bool[Array, 'T'],
    distinct: bool = False,
) -> Float[Array, '*L H']:
    """The score of every head on one row.

    Args:
        pattern: attention weights, queries then keys.
        tokens: of the row, the answer among them.
        needle: which tokens are the fact's.
        answer: which tokens are the answer's.
        distinct: whether a token of the needle counts once.

    >>> tokens, needle = jnp.array([7, 5, 0, 5]), jnp.array([False, True, False, False])
    >>> pattern = jnp.zeros((2, 4, 4)).at[0, 2, 1].set(1.0).at[1, 2, 2].set(1.0)
    >>> hits(pattern, tokens, needle, jnp.array([False, False, False, True])).tolist()
    [1.0, 0.0]
    """

    def of_head(pattern: Float[Array, 'T T']) -> Float[Array, '']:
        looked_at = jnp.argmax(pattern[:-1], axis=-1)
        hit = needle[looked_at] & (tokens[looked_at] == tokens[1:]) & answer[1:]
        if distinct:
            hit = jnp.zeros_like(needle).at[looked_at].max(hit)
        return jnp.sum(hit) / jnp.sum(needle)

    scores = jax.vmap(of_head)(pattern.reshape(-1, *pattern.shape[-2:]))
    return scores.reshape(pattern.shape[:-2])


def score_retrieval(
    model: nn.Module,
    params: PyTree,
    tokens: Int32[Array, 'B T'],
    needle: Bool[Array, 'B T'],
    answer: Bool[Array, 'B T'],
    *,
    segments: Int32[Array, 'B T'] | None = None,
    distinct: bool = False,
    collections: Mapping[str, PyTree] | None = None,
) -> RetrievalScores:
    """Scores every head of every layer that has patterns; rows are run one after another, to hold one row's patterns.

    Args:
        model: a decoder of tokens.
        params: its parameters.
        tokens: prompts with their answers.
        needle: which tokens are the fact's.
        answer: which tokens are the answer's.
        segments: 0 is padding; None: there is none.
        distinct: whether a token of the needle counts once.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: no layer of the model has patterns; a row without a needle or an answer.
    """
    axis_sizes('score_retrieval', tokens=(tokens, 'B T'), needle=(needle, 'B T'), answer=(answer, 'B T'))
    for name, mask in (('needle', needle), ('answer', answer)):
        if not bool(jnp.all(jnp.any(mask, axis=1))):
            raise ValueError(f'score_retrieval: {name} is empty in row {int(jnp.argmin(jnp.any(mask, axis=1)))}')
    there = capture.index(model, params, tokens[:1], collections=collections)
    if 'pattern' not in there:
        raise ValueError('score_retrieval: no layer of this model has attention patterns (the site pattern is missing)')
    segments = jnp.ones_like(tokens) if segments is None else segments
    scores, recall = _rows(model, distinct, params, collections or {}, (tokens, needle, answer, segments))
    kept = (recall > KEPT).astype(scores.dtype)
    means = jnp.einsum('blh,b->lh', scores, kept) / jnp.sum(kept)
    return RetrievalScores(tuple(there['pattern']), means, recall)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rows(
    model: nn.Module, distinct: bool, params: PyTree, collections: Mapping[str, PyTree], rows: tuple[Array, ...]
) -> tuple[Float[Array, 'B L H'], Float[Array, 'B']]:
    """The scores and the recall of every row of tokens, needle, answer and segments."""

    def one(row: tuple[Array, ...]) -> tuple[Array, Array]:
        tokens, needle, answer, segments = row
        context = Context(segments=segments[None])
        found = capture.run(model, params, tokens[None], sites=['pattern'], context=context, collections=collections)
        right = (jnp.argmax(found.outputs[0, :-1], axis=-1) == tokens[1:]) & answer[1:]
        recall = jnp.sum(right) / jnp.sum(answer[1:])
        return hits(found.stack('pattern')[:, 0], tokens, needle, answer, distinct), recall

    return jax.lax.map(one, rows)
