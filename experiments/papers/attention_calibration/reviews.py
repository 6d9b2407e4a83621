"""Zero-shot sentiment of film reviews: which of two words is likelier behind a prompt, some heads calibrated."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from experiments.papers.concept_depth.reviews import PROMPT, SAID
from experiments.papers.real_model import Real
from jattn.contract import Context
from jattn.data.corpus import VALIDATION
from jattn.data.sentences import SST2Config
from jattn.typing import Array, Bool, Float, Int32, PyTree
from jattn.understanding import capture
from jattn.understanding.calibrate import prepare
from jattn.understanding.interventions import Replacement


@struct.dataclass
class Reviews:
    """Prompts of one length, padded.

    Attributes:
        tokens: [N, T].
        lengths: [N], real tokens.
        labels: [N], 0 or 1.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __getitem__(self, rows: slice) -> 'Reviews':
        return jax.tree.map(lambda leaf: leaf[rows], self)


def draw(real: Real, path: str | None, count: int, tokens: int, seed: int) -> Reviews:
    """Reviews of SST-2's development set whose prompts have at most `tokens` tokens; None: made-up ones.

    Raises:
        ValueError: there are fewer than `count`.
    """
    if path is None:
        texts = [(f'{"good" if n % 2 else "bad"} film {n}', n % 2) for n in range(4 * count)]
    else:
        texts = SST2Config(path=path).read_texts()[VALIDATION]
    rows, lengths, labels = [], [], []
    for number in np.random.default_rng(seed).permutation(len(texts)):
        text, label = texts[number]
        prompt = real.encode(PROMPT.format(text.strip()))
        if len(prompt) <= tokens and len(rows) < count:
            rows.append(prompt + [0] * (tokens - len(prompt)))
            lengths.append(len(prompt))
            labels.append(label)
    if len(rows) < count:
        raise ValueError(f'reviews: {len(rows)} have at most {tokens} tokens, but {count} were asked for')
    return Reviews(np.array(rows), np.array(lengths), np.array(labels))


class Classifier:
    """The zero-shot classifier, some of its heads calibrated.

    Attributes:
        heads: the calibration of every head.
    """

    def __init__(self, real: Real, reviews: Reviews, batch: int, **options: object) -> None:
        self._real, self._batch = real, batch
        self._words = tuple(real.encode(word)[0] for word in SAID)
        self.heads = prepare(real.model, real.params, reviews.tokens[:batch], **options)

    def table(self, layers: Sequence[int]) -> Bool[Array, 'L H']:
        """All heads of some layers."""
        return self.heads.table([part for part in self.heads.parts if part[0] in layers])

    def differences(self, reviews: Reviews, table: Bool[Array, 'L H']) -> Float[np.ndarray, 'N']:
        """The score of the good word minus that of the bad one; short prompts together, at half of the padding."""
        found = np.zeros(len(reviews.labels))
        order, whole = np.argsort(reviews.lengths, kind='stable'), reviews.tokens.shape[1]
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            lengths = reviews.lengths[rows]
            tokens = reviews.tokens[rows, : whole * 5 // 8 if lengths.max() <= whole * 5 // 8 else whole]
            arrays = (self._real.params, tokens, lengths, self.heads, table)
            found[rows] = np.asarray(_differences(self._real.model, self._words, arrays))
        return found

    def accuracy(self, reviews: Reviews, layers: Sequence[int]) -> float:
        """The share that is right with all heads of some layers calibrated."""
        return float(np.mean((self.differences(reviews, self.table(layers)) > 0) == reviews.labels))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differences(
    model: nn.Module,
    words: tuple[int, int],
    arrays: tuple[PyTree, Int32[Array, 'B T'], Int32[Array, 'B'], Replacement, Bool[Array, 'L H']],
) -> Float[Array, 'B']:
    params, tokens, lengths, heads, table = arrays
    context = Context(segments=(jnp.arange(tokens.shape[1])[None] < lengths[:, None]).astype(jnp.int32))
    run = capture.run(model, params, tokens, edits=heads.edits(table), context=context)
    last = jnp.take_along_axis(run.outputs, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return last[:, words[1]] - last[:, words[0]]
