"""Runs every row of Miras' Table 1 from one class, and beside it the row's own recurrence (`recurrences.py`).

The tokens are those of the member's own layer (its projections, convolutions, features and gates, with random
parameters) on random inputs; its memory, from a random start, is run by the path that its config chooses.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.contract import Line
from experiments.papers.miras.recurrences import ROWS, Row, value_decay
from experiments.papers.miras.stream import Stream
from jattn.contract import Context, Rows
from jattn.memories import MEMORIES, MemoryConfig
from jattn.memories.paths import PATHS
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Tokens, place
from jattn.typing import Array, Float, PyTree

PAPER = '52'
BATCH, TOKENS = 2, 21  # several chunks of 4, the last not full


def config(row: Row) -> MemoryConfig:
    """The row's member, of a small size; what it reads before a document is left out."""
    cfg = MEMORIES[row.member].tiny()
    return dataclasses.replace(cfg, persistent=0, retention=row.retention or cfg.retention)


def largest_error(row: Row, seed: int = 0, dtype: type = np.float32) -> float:
    """The largest difference between memory and recurrence, over the largest size of an output."""
    cfg = config(row)
    x, variables, initial, slow = _draw(cfg, np.random.default_rng(seed), dtype)
    scale = _running_decay(cfg.values, dtype) if row.value_decays else None
    tokens, y = jax.device_get(_run(cfg, x, variables, initial, slow, scale))
    own = [[row.recurrence(_stream(cfg, tokens, initial, slow, b, h)) for h in range(cfg.heads)] for b in range(BATCH)]
    expected = np.moveaxis(np.array(own), 1, 2)
    return float(np.max(np.abs(y - expected)) / np.max(np.abs(expected)))


def lines(seed: int, names: Sequence[str] | None = None) -> list[Line]:
    """A line a row (of `names`; None: of all).

    In float64: with random gates the networks' steps are large, and float32 errors grow with them.
    """
    out = []
    for name in ROWS if names is None else names:
        row = ROWS[name]
        cfg = config(row)
        note = f'MEMORIES[{row.member!r}] on the path {cfg.running_path}, {BATCH * cfg.heads} heads, {TOKENS} tokens'
        if row.value_decays:
            note += '; decays of value channels by scaled values and reads around it'
        with jax.enable_x64(True):
            error = largest_error(row, seed, np.float64)
        claim = f'one class against the own recurrence of {name}, largest relative error'
        out.append(Line.number(PAPER, claim, error, below=1e-5, note=note))
    return out


@functools.partial(jax.jit, static_argnums=0)
def _run(
    cfg: MemoryConfig,
    x: Float[Array, 'B T D'],
    variables: PyTree,
    initial: tuple[Array, ...],
    slow: dict[str, Array],
    scale: Float[Array, '1 T 1 V'] | None,
) -> tuple[Tokens, Float[Array, 'B T H V']]:
    """The tokens that the layer makes of x, and the memory's reads."""
    places = place(Rows(), (BATCH, TOKENS), cfg.chunk, None)
    tokens, _ = cfg.recipe.read_in(cfg).apply(variables, x, Rows(), Context(), None, places.place)
    tokens = tokens.replace(extra={})
    if cfg.recipe.normaliser:
        tokens = tokens.replace(v=jnp.concatenate([tokens.v, jnp.ones_like(tokens.v[..., :1])], axis=-1))
    fresh = Fresh.of(cfg, initial, slow)
    told = tokens if scale is None else tokens.replace(v=tokens.v / scale)
    y, _ = PATHS[cfg.running_path].run(cfg, told, Rows(), places, fresh, None)
    return tokens, y if scale is None else y * scale


def _draw(
    cfg: MemoryConfig, draws: np.random.Generator, dtype: type
) -> tuple[Array, PyTree, tuple[Array, ...], dict[str, Array]]:
    """Inputs, the layer's parameters, W_0 (zero where the member starts at zero), the slow parameters of every head."""

    def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> Array:
        return (mean + std * draws.normal(size=shape)).astype(dtype)

    x = normal((BATCH, TOKENS, cfg.width), 1.0)
    places = place(Rows(), (BATCH, TOKENS), cfg.chunk, None)
    shapes = jax.eval_shape(cfg.recipe.read_in(cfg).init, jax.random.key(0), x, Rows(), Context(), None, places.place)
    variables = jax.tree.map(lambda leaf: normal(leaf.shape, 0.3), nn.unbox(shapes))
    weights = cfg.architecture.shapes(cfg.keys, cfg.values)
    initial = tuple(normal((cfg.heads, *shape), 0.5 if cfg.learned_start else 0.0) for shape in weights)
    wanted = cfg.architecture.slow(cfg.values) | cfg.retention.slow(weights)
    slow = {name: normal((cfg.heads, *shape), 0.1, mean) for name, (shape, mean) in wanted.items()}
    if cfg.learner.averaged:
        slow['offsets'] = normal((cfg.heads, cfg.chunk), 0.02)
    return x, variables, initial, slow


def _running_decay(values: int, dtype: type) -> Float[Array, '1 T 1 V']:
    """The product of the value channels' decays so far."""
    decays = np.cumprod([value_decay(t, values) for t in range(TOKENS)], axis=0)
    return decays.astype(dtype)[None, :, None, :]


def _stream(cfg: MemoryConfig, tokens: Tokens, initial: tuple, slow: dict, row: int, head: int) -> Stream:
    """One head of one row, in float64."""

    def own(leaf: Array | None) -> Array | None:
        return None if leaf is None else np.asarray(leaf[row, :, head], np.float64)

    return Stream(
        q=own(tokens.q),
        k=own(tokens.k),
        v=own(tokens.v),
        step=own(tokens.step),
        log_decay=own(tokens.log_decay),
        log_momentum=own(tokens.log_momentum),
        threshold=own(tokens.threshold),
        erase=None if tokens.erase is None else (own(tokens.erase[0]), own(tokens.erase[1])),
        head=head,
        heads=cfg.heads,
        initial=tuple(np.asarray(weight[head], np.float64) for weight in initial),
        slow={name: np.asarray(leaf[head], np.float64) for name, leaf in slow.items()},
        chunk=cfg.chunk,
    )
