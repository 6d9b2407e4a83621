"""What attention heads do, read from their patterns: whom they copy, and which tokens gather their attention.

On a block of random tokens that is repeated, x_1 .. x_n x_1 .. x_n (Olsson et al. 2022), averaged over the queries t of
the second half,

    previous token   pattern[t, t - 1]         attends to the token before
    duplicate token  pattern[t, t - n]         attends to the same token's last occurrence
    induction        pattern[t, t - n + 1]     attends to what followed it then: what comes next now

Each score is the share of a head's attention, in [0, 1]; uniform attention scores about 1.4 / T over the second half.

On any rows, over the queries t that stand behind a token s of the same document,

    received         mean over t of pattern[t, s]              how much a token is attended to
    sink             mean over t of sum_s pattern[t, s]        the share that goes to the first token, or to chosen ones
    receiver         kurtosis over s of received               how few tokens gather what a head gives

(sinks: Xiao et al. 2023, and Yu et al. 2024, whose column means these are; receiver heads: Bogdan et al. 2025.)
Recurrent mixers have no patterns: their layers are not scored.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.ops import segments as documents
from jattn.typing import Array, Bool, Float, Int32, Key, PyTree, axis_sizes
from jattn.understanding import capture

SCORES = ('previous_token', 'duplicate_token', 'induction')


@struct.dataclass
class HeadScores:
    """Scores by head.

    Attributes:
        layers: the layers that have patterns, one a row.
        previous_token, duplicate_token, induction: [L, H].
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    previous_token: Float[Array, 'L H']
    duplicate_token: Float[Array, 'L H']
    induction: Float[Array, 'L H']

    def best(self, score: str) -> tuple[int, int, float]:
        """(layer, head, value) of the highest score."""
        values = getattr(self, score)
        row, head = jnp.unravel_index(jnp.argmax(values), values.shape)
        return self.layers[int(row)], int(head), float(values[row, head])


@struct.dataclass
class Gathered:
    """Where the attention of heads gathers.

    Attributes:
        layers: the layers that have patterns, one a row.
        sink: [L, H], the mean share that goes to the sinks.
        receiver: [L, H], the mean over rows of the kurtosis of what tokens receive (3 for a normal distribution).
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    sink: Float[Array, 'L H']
    receiver: Float[Array, 'L H']


def repeated_tokens(key: Key, batch: int, half: int, tokens: Int32[Array, 'N']) -> Int32[Array, 'B T']:
    """Blocks of `half` tokens drawn without replacement from `tokens`, each twice in a row: [batch, 2 half].

    >>> repeated_tokens(jax.random.key(0), 1, 2, jnp.arange(5)).shape
    (1, 4)
    """
    if half > len(tokens):
        raise ValueError(f'repeated_tokens: half={half} distinct tokens of {len(tokens)} were asked for')
    draw = lambda key: jax.random.permutation(key, tokens)[:half]
    block = jax.vmap(draw)(jax.random.split(key, batch))
    return jnp.concatenate([block, block], axis=1)


def score_heads(
    model: nn.Module, params: PyTree, key: Key, tokens: Int32[Array, 'N'], *, batch: int = 8, half: int = 32
) -> HeadScores:
    """Scores every head of every layer that has patterns.

    Args:
        model: a trunk that reads tokens.
        params: its parameters.
        key: of the random blocks.
        tokens: the vocabulary to draw from; distinct within a block.
        batch: blocks.
        half: n, tokens of a block.

    Raises:
        ValueError: no layer of the model has patterns.
    """
    inputs = repeated_tokens(key, batch, half, tokens)
    if 'pattern' not in capture.index(model, params, inputs):
        raise ValueError('score_heads: no layer of this model has attention patterns')
    captured = capture.run(model, params, inputs, sites=['pattern'])
    means = captured.stack('pattern').mean(axis=1)  # [L, H, T, S]
    query = jnp.arange(half, 2 * half)

    def at_offset(offset: int) -> Float[Array, 'L H']:
        return means[:, :, query, query - offset].mean(axis=-1)

    layers = tuple(captured.values['pattern'])
    return HeadScores(layers, at_offset(1), at_offset(half), at_offset(half - 1))


def received(
    pattern: Float[Array, '*L H T T'], segments: Int32[Array, 'T'] | None = None, gap: int = 1
) -> Float[Array, '*L H T']:
    """The mean attention that each token gets from the queries at least `gap` tokens behind it.

    Args:
        pattern: attention weights of one row, queries then keys.
        segments: the document of each token, 0 = padding; None: one document.
        gap: 0 counts a token's own query; more leaves out what is near anyway.

    Returns:
        The means; NaN for a token that no such query follows, and for padding.

    >>> received(jnp.array([[[1.0, 0.0], [0.75, 0.25]]])).tolist()
    [[0.75, nan]]
    """
    behind = _behind(pattern.shape[-1], segments, gap)
    count = jnp.sum(behind, axis=0)
    total = jnp.einsum('...ts,ts->...s', pattern, behind.astype(pattern.dtype))
    mean = total / jnp.maximum(count, 1).reshape(*[1] * (total.ndim - 1), -1)
    return jnp.where((count > 0).reshape(*[1] * (total.ndim - 1), -1), mean, jnp.nan)


def sink_mass(
    pattern: Float[Array, '*L H T T'],
    sinks: Bool[Array, 'T'] | None = None,
    segments: Int32[Array, 'T'] | None = None,
) -> Float[Array, '*L H']:
    """The mean share of attention that goes to sinks, over the queries that stand behind one of their document.

    Args:
        pattern: attention weights of one row, queries then keys.
        sinks: which tokens they are; None: the first of every document.
        segments: the document of each token, 0 = padding; None: one document.

    >>> sink_mass(jnp.array([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.75, 0.25, 0.0]]])).tolist()
    [0.625]
    """
    tokens = pattern.shape[-1]
    sinks = _first(tokens, segments) if sinks is None else sinks
    axis_sizes('sink_mass', sinks=(sinks, str(tokens)))
    behind = _behind(tokens, segments, 1) & sinks[None]
    queries = jnp.any(behind, axis=1)
    total = jnp.einsum('...ts,ts->...', pattern, behind.astype(pattern.dtype))
    return total / jnp.sum(queries)


def receiver_kurtosis(
    pattern: Float[Array, '*L H T T'],
    segments: Int32[Array, 'T'] | None = None,
    *,
    gap: int = 4,
    least: int = 4,
    leave_out: Bool[Array, 'T'] | None = None,
) -> Float[Array, '*L H']:
    """The kurtosis of what the tokens receive: about n where one token in n gathers it all.

    Args:
        pattern: attention weights of one row, queries then keys.
        segments: the document of each token, 0 = padding; None: one document.
        gap: queries nearer than this do not count: all heads look at what is near.
        least: tokens that fewer queries follow do not count: their means are noise.
        leave_out: tokens that do not count, the sinks: the first token would be the one receiver of every head.

    >>> pattern = jnp.zeros((2, 40, 40)).at[0, :, 7].set(1.0).at[1, :, ::2].set(0.05)
    >>> found = receiver_kurtosis(pattern)
    >>> bool(found[0] > 20), bool(found[1] < 2)
    (True, True)
    """
    mass = received(pattern, segments, gap)
    counted = jnp.sum(_behind(pattern.shape[-1], segments, gap), axis=0) >= least
    counted = counted if leave_out is None else counted & ~leave_out
    where = jnp.broadcast_to(counted.reshape(*[1] * (mass.ndim - 1), -1), mass.shape)
    mass = jnp.where(where, mass, 0)
    mean = jnp.mean(mass, axis=-1, keepdims=True, where=where)
    second = jnp.mean((mass - mean) ** 2, axis=-1, where=where)
    fourth = jnp.mean((mass - mean) ** 4, axis=-1, where=where)
    return fourth / second**2


def score_gathering(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    *,
    sinks: Bool[Array, 'B T'] | None = None,
    gap: int = 4,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
) -> Gathered:
    """Scores every head of every layer that has patterns; rows run one after another, to hold one row's patterns.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: what it reads.
        sinks: which tokens are sinks; None: the first of every document. No receiver is one of them.
        gap: queries nearer than this count for no receiver.
        context: positions and segments.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: no layer of the model has patterns.
    """
    there = capture.index(model, params, inputs, context, collections)
    if 'pattern' not in there:
        raise ValueError('score_gathering: no layer of this model has attention patterns')
    sink, receiver = _gathered(model, gap, params, collections or {}, (inputs, context, sinks))
    return Gathered(tuple(there['pattern']), jnp.mean(sink, axis=0), jnp.mean(receiver, axis=0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gathered(
    model: nn.Module,
    gap: int,
    params: PyTree,
    collections: Mapping[str, PyTree],
    rows: tuple[Array, Context, Bool[Array, 'B T'] | None],
) -> tuple[Float[Array, 'B L H'], Float[Array, 'B L H']]:
    """The shares of the sinks and the kurtosis of every row."""

    def one(row: tuple[Array, Context, Bool[Array, 'T'] | None]) -> tuple[Array, Array]:
        inputs, context, sinks = row
        alone = jax.tree.map(lambda leaf: leaf[None], context)
        run = capture.run(model, params, inputs[None], sites=['pattern'], context=alone, collections=collections)
        pattern, segments = run.stack('pattern')[:, 0], context.segments
        sinks = _first(pattern.shape[-1], segments) if sinks is None else sinks
        return sink_mass(pattern, sinks, segments), receiver_kurtosis(pattern, segments, gap=gap, leave_out=sinks)

    return jax.lax.map(one, rows)


def _first(tokens: int, segments: Int32[Array, 'T'] | None) -> Bool[Array, 'T']:
    """The first token of every document."""
    return documents.openings((jnp.ones(tokens, jnp.int32) if segments is None else segments)[None])[0]


def _behind(tokens: int, segments: Int32[Array, 'T'] | None, gap: int) -> Bool[Array, 'T T']:
    """Whether the query t stands at least `gap` tokens behind the key s, in the same document."""
    place = jnp.arange(tokens)
    behind = place[:, None] - place[None] >= gap
    if segments is None:
        return behind
    return behind & (segments[:, None] == segments[None]) & (segments > 0)[:, None]
