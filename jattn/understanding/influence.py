"""AttentionInfluence: how much a document's loss rises when the heads that retrieve look everywhere alike.

    score(x) = (L(silenced) - L(whole)) / L(whole)        L: mean nats a token of the document

(Hua et al. 2025.) A document whose tokens stand in its own context (recall, worked examples) needs these heads, one
that is guessed from the weights does not, so that the score orders documents of one source as training data. It does
not compare sources: divided by the loss, or not (`relative_to`), it also tells how hard a text is. Uniform is over what
a head may see; its values stay as they are. The heads come from `retrieval.score_retrieval(...).ranked()`.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Float, Int32, PyTree, axis_sizes
from jattn.understanding import ablate, capture

LEAST = 1e-3  # nats a token: documents with less loss are divided by this
RELATIVE_TO = ('base', 'silenced', 'none')


@struct.dataclass
class Influence:
    """Losses of documents with and without some heads.

    Attributes:
        score: [B], of each document.
        base, silenced: [B], mean nats a token.
        by_token: [B, T-1], the rise at each next token; 0 at padding.
    """

    score: Float[Array, 'B']
    base: Float[Array, 'B']
    silenced: Float[Array, 'B']
    by_token: Float[Array, 'B T-1']


def influence(
    model: nn.Module,
    params: PyTree,
    tokens: Int32[Array, 'B T'],
    heads: Sequence[tuple[int, int]],
    *,
    kind: str = 'uniform',
    relative_to: str = 'base',
    segments: Int32[Array, 'B T'] | None = None,
    collections: Mapping[str, PyTree] | None = None,
) -> Influence:
    """Scores documents, a row each; rows are run one after another, and all sets of heads share one program.

    Args:
        model: a decoder of tokens.
        params: its parameters.
        tokens: of the documents.
        heads: (layer, head) that are silenced.
        kind: of `ablate`: 'uniform', 'zero'.
        relative_to: what the rise is divided by: the loss of the whole model ('base'), of the 'silenced' one, or
            'none'.
        segments: 0 is padding; None: there is none.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: a head that the model does not have, a kind that reads other rows, an unknown `relative_to`, a row
            of fewer than two tokens.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3, 1, 2]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> influence(model, params, tokens, []).score.tolist(), influence(model, params, tokens, [(0, 1)]).by_token.shape
    ([0.0], (1, 4))
    """
    options = dict(kind=kind, relative_to=relative_to, segments=segments, collections=collections)
    return influences(model, params, tokens, [heads], **options)[0]


def influences(
    model: nn.Module,
    params: PyTree,
    tokens: Int32[Array, 'B T'],
    sets: Sequence[Sequence[tuple[int, int]]],
    *,
    kind: str = 'uniform',
    relative_to: str = 'base',
    segments: Int32[Array, 'B T'] | None = None,
    collections: Mapping[str, PyTree] | None = None,
) -> list[Influence]:
    """Scores the same documents with several sets of heads silenced in turn; the whole model runs once.

    Args:
        model, params, tokens, kind, relative_to, segments, collections: as of `influence`.
        sets: of heads.

    Raises:
        ValueError: as of `influence`.
    """
    axis_sizes('influence', tokens=(tokens, 'B T'), segments=(segments, 'B T'))
    if kind not in ('uniform', 'zero'):
        raise ValueError(f"influence: kind={kind!r} must be 'uniform' or 'zero': a score belongs to one document")
    if relative_to not in RELATIVE_TO:
        raise ValueError(f'influence: relative_to={relative_to!r} must be one of {", ".join(RELATIVE_TO)}')
    segments = jnp.ones_like(tokens) if segments is None else segments
    if int(jnp.min(jnp.sum(segments > 0, axis=1))) < 2:
        raise ValueError('influence: a document needs two tokens, one to guess the other')
    silent = ablate.prepare(model, params, tokens[:1], kind=kind, collections=collections)
    masks = jnp.stack([silent.table(heads) for heads in ([], *sets)])
    (whole, *others), counted = _nats(model, params, collections or {}, silent, masks, tokens, segments)
    mean = lambda nats: jnp.sum(nats, axis=1) / jnp.sum(counted, axis=1)
    base, found = mean(whole), []
    for nats in others:
        silenced = mean(nats)
        scale = {'base': base, 'silenced': silenced, 'none': jnp.ones_like(base)}[relative_to]
        found.append(Influence((silenced - base) / jnp.maximum(scale, LEAST), base, silenced, nats - whole))
    return found


def select(score: Float[Array, 'B'], domains: Sequence[str | int], share: float) -> list[int]:
    """The documents with the highest scores of every domain, in order: ceil(share n) of its n.

    Raises:
        ValueError: a share out of (0, 1], or another number of domains than scores.

    >>> select(jnp.array([0.1, 0.3, 0.2, 9.0]), ['a', 'a', 'a', 'b'], 0.5)
    [1, 2, 3]
    """
    if not 0 < share <= 1:
        raise ValueError(f'select: share={share} must be in (0, 1]')
    if len(domains) != len(score):
        raise ValueError(f'select: {len(domains)} domains for {len(score)} scores')
    values, chosen = np.asarray(score), []
    for domain in dict.fromkeys(domains):
        own = [n for n, other in enumerate(domains) if other == domain]
        own.sort(key=lambda n: (-values[n], n))
        chosen += own[: math.ceil(share * len(own))]
    return sorted(chosen)


@functools.partial(jax.jit, static_argnums=0)
def _nats(
    model: nn.Module,
    params: PyTree,
    collections: Mapping[str, PyTree],
    silent: PyTree,
    masks: Array,
    tokens: Int32[Array, 'B T'],
    segments: Int32[Array, 'B T'],
) -> tuple[Float[Array, 'S B T-1'], Float[Array, 'B T-1']]:
    """-log p of every next token with each set of heads silenced, and which tokens count."""
    counted = ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)).astype(jnp.float32)

    def of_row(mask: Array, row: tuple[Array, Array]) -> Float[Array, 'T-1']:
        tokens, segments = row
        run = capture.run(
            model,
            params,
            tokens[None],
            edits=silent.edits(mask),
            context=Context(segments=segments[None]),
            collections=collections,
        )
        log_p = jax.nn.log_softmax(run.outputs[0, :-1].astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(log_p, tokens[1:, None], axis=1)[:, 0]

    of_set = lambda mask: jax.lax.map(functools.partial(of_row, mask), (tokens, segments))
    return jax.lax.map(of_set, masks) * counted[None], counted
