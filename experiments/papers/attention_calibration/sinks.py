"""Where the attention of a language model gathers in windows of a novel, and the residual stream there.

a_k = mean over the queries q >= k of A_qk                    the sheet's column mean, of every head
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from experiments.papers.real_model import Real
from jattn.data.corpus import read_bytes
from jattn.taps import Edit
from jattn.typing import Array, Float, Int32, PyTree
from jattn.understanding import capture
from jattn.understanding.heads import received
from jattn.understanding.interventions import Edits

CHANNELS = 2  # of the residual stream that carry a massive activation
LEAST = 64  # queries that see a column before its mean counts as more than noise


@struct.dataclass
class Windows:
    """Windows of one length, read.

    Attributes:
        tokens: [N, T].
        columns: [N, L, H, T], column means.
        norms: [N, L, T], of the residual stream behind each layer.
    """

    tokens: np.ndarray
    columns: np.ndarray
    norms: np.ndarray

    def later(self, least: int = LEAST) -> np.ndarray:
        """The columns but the first, of those that enough queries see."""
        return self.columns[..., 1 : max(self.tokens.shape[1] - least, 2)]


def read_novel(real: Real, path: str | None, windows: int, tokens: int) -> Int32[np.ndarray, 'N T']:
    """Windows of Dracula, evenly spread, lines unwrapped; None: a sentence again and again."""
    if path is None:
        text = 'It rained all day, and the road to the village was empty. ' * 200
    else:
        file = pathlib.Path(path) / 'dracula.txt.gz'
        text = ' '.join(read_bytes(file).decode(errors='replace').split())
    starts = np.linspace(len(text) // 50, len(text) * 9 // 10, windows).astype(int)
    return np.stack([real.encode(text[start : start + 12 * tokens])[1 : tokens + 1] for start in starts])


def read(real: Real, tokens: Int32[np.ndarray, 'N T'], edits: Sequence[Edits] | None = None) -> Windows:
    """Columns and norms of every window, one after the other; with edits, one set a window."""
    rows = []
    for number, row in enumerate(tokens):
        rows.append(jax.device_get(_one(real.model, real.params, row[None], {} if edits is None else edits[number])))
    return Windows(np.asarray(tokens), *(np.stack(part) for part in zip(*rows)))


@functools.partial(jax.jit, static_argnums=0)
def _one(
    model: nn.Module, params: PyTree, tokens: Int32[Array, '1 T'], edits: Edits
) -> tuple[Float[Array, 'L H T'], Float[Array, 'L T']]:
    found = capture.run(model, params, tokens, sites=['pattern', 'resid_post'], edits=edits)
    norms = jnp.linalg.norm(found.stack('resid_post')[:, 0], axis=-1)
    return received(found.stack('pattern')[:, 0], gap=0), norms


def strongest_later(windows: Windows, layers: Sequence[int], least: int = LEAST) -> Int32[np.ndarray, 'N']:
    """The place of each window's strongest column but the first, in the mean over heads and some layers."""
    return 1 + windows.later(least)[:, list(layers)].mean(axis=(1, 2)).argmax(axis=-1)


def without_massive(
    real: Real, tokens: Int32[np.ndarray, 'N T'], places: Int32[np.ndarray, 'N'], layers: Sequence[int]
) -> list[Edits]:
    """Edits by which the attention of some layers reads one token of each window without its largest channels."""
    middle, found = layers[len(layers) // 2], []
    read_in = jax.jit(lambda params, row: capture.run(real.model, params, row, sites=['attn_in']).at('attn_in', middle))
    for row, place in zip(tokens, places):
        value = np.asarray(read_in(real.params, row[None]))[0, place]
        mask = np.zeros((1, len(row), len(value)), bool)
        mask[0, place, np.argsort(-np.abs(value))[:CHANNELS]] = True
        edit = Edit(value=jnp.zeros(()), mask=jnp.asarray(mask))
        found.append({('attn_in', layer): edit for layer in layers})
    return found
