"""Attention calibration (ACT; Yu et al. 2024): what gathers at tokens of little meaning is damped and given back.

    a_k     = mean over the queries q that see key k of A_qk
    S_q     = {k that q sees : a_k > threshold} without its first           the sinks of a query, but the initial one
    A'_qs   = beta A_qs                                                     s in S_q
    A'_qk   = A_qk (1 + (1 - beta) sum_{s in S_q} A_qs / sum_{j not in S_q} A_qj)      for the others

A is a head's pattern behind the softmax. Rows of A' sum to 1 and the others keep their ratios: no bias of the scores
does this. The threshold is a number (0.1 in the authors' scripts) or, `relative`, a number over the document's tokens
(5 / T in their text). A column that few queries see has a noisy mean, and the last token always looks like a sink:
`min_rows` leaves those out; 1 is as published. A row that has nothing but sinks is left alone.

The edit is a function of the pattern (`taps.Edit.value`), found afresh for each input, one `Replacement` of heads: any
table of heads, any sweep. Who sees whom comes from the mixer, so padding sees and gathers nothing, and documents of one
row have sinks of their own. A query's first sink is the first that it sees: behind a window, the window's first.

As published the sinks of a whole prompt are found before its first row is damped: a row depends on later ones. Token by
token the means are running ones; `before` holds the sums of earlier calls:

    a_k = (sums_k + A_qk) / (rows_k + 1)                 in the last row the same as of the whole prompt
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, Int32, PyTree, at_least_float32
from jattn.understanding import capture
from jattn.understanding.interventions import Effects, Metric, Replacement, shapes_of, sweep

BETA, THRESHOLD = 0.4, 0.1
Seen = Bool[Array, 'B T S'] | None


@struct.dataclass
class Columns:
    """What keys received, and of how many queries; those of several calls add up.

    Attributes:
        sums: [B, H, S].
        rows: [B, 1, S], the queries that see a key.
    """

    sums: Float[Array, 'B H S']
    rows: Int32[Array, 'B 1 S']

    def __add__(self, other: 'Columns') -> 'Columns':
        return jax.tree.map(jnp.add, self, other)

    @property
    def means(self) -> Float[Array, 'B H S']:
        """a; 0 for a key that nobody sees."""
        return self.sums / jnp.maximum(self.rows, 1)


def columns(pattern: Float[Array, 'B H T S'], visible: Seen = None) -> Columns:
    """The columns of patterns.

    Args:
        pattern: attention weights.
        visible: [B or 1, T, S], which keys a query sees; None: all.

    >>> found = columns(jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]]), jnp.array([[[True, False], [True, True]]]))
    >>> found.means.tolist()
    [[[0.75, 0.5]]]
    """
    seen = _seen(pattern, visible)
    return Columns(
        jnp.sum(jnp.where(seen, pattern, 0), axis=2, dtype=at_least_float32(pattern)),
        jnp.sum(seen, axis=2, dtype=jnp.int32),
    )


def calibrate(
    pattern: Float[Array, 'B H T S'],
    visible: Seen = None,
    *,
    beta: float | Array = BETA,
    threshold: float | Array = THRESHOLD,
    relative: bool = False,
    min_rows: int = 1,
    keep_first: bool = True,
    before: Columns | None = None,
) -> Float[Array, 'B H T S']:
    """Patterns with all sinks but the first damped, and what they lose given to the others.

    Args:
        pattern: attention weights; a row sums to 1, or to 0 where a query sees nobody.
        visible: [B or 1, T, S], which keys a query sees; None: all.
        beta: what a sink keeps of its attention.
        threshold: the column mean above which a key is a sink.
        relative: whether the threshold is divided by the document's tokens.
        min_rows: a key that fewer queries see is no sink.
        keep_first: whether the first sink is left alone.
        before: the columns of earlier calls, as wide as the pattern.

    >>> pattern = jnp.array([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]]])
    >>> visible = jnp.tril(jnp.ones((1, 3, 3), bool))
    >>> calibrate(pattern, visible, beta=0.0, threshold=0.4)[0, 0].tolist()      # the middle one; the first is kept
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]
    """
    found = columns(pattern, visible)
    found = found if before is None else found + before
    seen = _seen(pattern, visible)
    if relative:  # the document of a key is as long as the longest row that sees it
        lengths = jnp.sum(seen, axis=3, keepdims=True)
        threshold = threshold / jnp.maximum(jnp.max(jnp.where(seen, lengths, 0), axis=2), 1)
    is_sink = (found.means > threshold) & (found.rows >= min_rows)
    chosen = is_sink[:, :, None] & seen
    if keep_first:
        chosen &= jnp.cumsum(chosen, axis=3, dtype=jnp.int32) > 1
    sunk = jnp.sum(jnp.where(chosen, pattern, 0), axis=3, keepdims=True)
    others = jnp.sum(jnp.where(chosen, 0, pattern), axis=3, keepdims=True)
    gain = (1 - beta) * sunk / jnp.where(others > 0, others, 1)
    return jnp.where(others > 0, jnp.where(chosen, beta * pattern, pattern * (1 + gain)), pattern)


@struct.dataclass
class Calibration:
    """`calibrate` as the value of an `Edit` of the site `pattern`.

    Attributes:
        beta, threshold: data, so that a sweep over them compiles once.
        before: the columns of earlier calls, or None.
        relative, min_rows, keep_first: as of `calibrate`.
    """

    beta: Array
    threshold: Array
    before: Columns | None = None
    relative: bool = struct.field(pytree_node=False, default=False)
    min_rows: int = struct.field(pytree_node=False, default=1)
    keep_first: bool = struct.field(pytree_node=False, default=True)

    def __call__(self, pattern: Float[Array, 'B H T S'], visible: Seen) -> Float[Array, 'B H T S']:
        return calibrate(
            pattern,
            visible,
            beta=self.beta,
            threshold=self.threshold,
            relative=self.relative,
            min_rows=self.min_rows,
            keep_first=self.keep_first,
            before=self.before,
        )


def prepare(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    *,
    beta: float = BETA,
    threshold: float = THRESHOLD,
    relative: bool = False,
    min_rows: int = 1,
    keep_first: bool = True,
    before: Mapping[int, Columns] | None = None,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Replacement:
    """The calibration of a model's heads; `.edits(.table(heads))` are those of some, `.one` and `sweep` try them all.

    Args:
        model, params, inputs, context, collections, state: as of `capture.run`.
        beta, threshold, relative, min_rows, keep_first: as of `calibrate`.
        before: layer -> the columns of earlier calls.

    Raises:
        ValueError: a number out of range; a model without patterns; a layer whose queries each choose keys, so that a
            column is no token; `before` of other layers than have patterns.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> heads = prepare(model, params, tokens, threshold=0.2)
    >>> run = capture.run(model, params, tokens, edits=heads.edits(heads.table([(0, 1), (1, 3)])))
    >>> run.outputs.shape
    (1, 3, 8)
    """
    if not 0 <= beta <= 1:
        raise ValueError(f'calibrate: beta={beta} must lie in 0 .. 1')
    if threshold <= 0:
        raise ValueError(f'calibrate: threshold={threshold} must be above 0')
    if min_rows < 1:
        raise ValueError(f'calibrate: min_rows={min_rows} must be at least 1')
    there = capture.index(model, params, inputs, context, collections, state)
    if 'pattern' not in there:
        raise ValueError('calibrate: no layer of this model has attention patterns')
    if 'chosen' in there:
        raise ValueError(f'calibrate: queries of layers {list(there["chosen"])} choose blocks: a column is no token')
    run = dict(context=context, collections=collections, state=state)
    read = lambda: capture.run(model, params, inputs, sites=['pattern'], **run).values['pattern']
    shapes = shapes_of('calibrate', 'pattern', 'head', jax.eval_shape(read))
    layers = [layer for layer, _ in shapes]
    if before is not None and list(before) != layers:
        raise ValueError(f'calibrate: before holds layers {list(before)}, but patterns are at layers {layers}')
    fill = {
        layer: Calibration(
            jnp.asarray(beta, jnp.float32),
            jnp.asarray(threshold, jnp.float32),
            None if before is None else before[layer],
            relative,
            min_rows,
            keep_first,
        )
        for layer in layers
    }
    return Replacement('pattern', 'head', shapes, fill)


def search(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    heads: Replacement,
    layers: Sequence[int] | None = None,
    *,
    context: Context = Context(),
    batch_size: int = 4,
) -> Effects:
    """What the metric gains when each head alone is calibrated; the paper keeps those of an accuracy that rises.

    Args:
        model, params, inputs, context: as of `capture.run`; held out from what the kept heads are tested on.
        metric: of the outputs.
        heads: from `prepare`.
        layers: whose heads are tried; None: all but the first two and the last, as in the paper.
        batch_size: heads that run at once.
    """
    every = list(heads.counts)
    layers = every[2:-1] if layers is None else layers
    parts = [part for part in heads.parts if part[0] in layers]
    if not parts:
        raise ValueError(f'calibrate: layers={list(layers)} leaves no head; patterns are at layers {every}')
    return sweep(model, params, inputs, metric, heads, parts, context=context, batch_size=batch_size)


def kept(effects: Effects) -> list[tuple[int, int]]:
    """(layer, head) of the heads whose calibration raised the metric, the most first; may be none.

    >>> kept(Effects((2, 3), jnp.array([[0.5, 0.0], [-2.0, 1.0]]), jnp.zeros(())))
    [(3, 1), (2, 0)]
    """
    return [part for part in effects.ranked() if effects.at(*part) > 0]


def _seen(pattern: Float[Array, 'B H T S'], visible: Seen) -> Bool[Array, 'B 1 T S']:
    shape = (pattern.shape[0], 1, *pattern.shape[2:])
    return jnp.broadcast_to(True if visible is None else visible[:, None], shape)
