"""The memory as it is defined, token by token: the oracle of every fast path, and the path of what has no other.

    g_t = gradient of the inner loss, by `jax.vjp` through the whole network, at the weights of the chunk's start
          (chunk = 1: at the weights right before the token, or at those after its decay)
    S_t = m_t S_{t-1} - theta_t g_t               D_t = a_t D_{t-1} + S_t              b_t = a_t b_{t-1}
    y_t = network(q_t; fixed + b_t fading + slope D_t)         at a chunk's end: anchor = settle(anchor, b, D)

It needs no alignment, serves every legal memory but the ridge solver, and gives per token what the tools ask for: the
norm of the gradient (surprise), of the step (write_size) and of the weights it is taken at (state_norm).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.contract import Rows
from jattn.memories.learner import implicit_step
from jattn.memories.paths.state import Cell, Fresh, Recent, choose, empty_cell, norm, settled, shares
from jattn.memories.tokens import Places, Tokens
from jattn.ops.fast_weights import dual
from jattn.ops.fast_weights.dual import Weights
from jattn.typing import Array, Float

REMAT = 16  # tokens whose intermediate values are computed again in the backward pass


@struct.dataclass
class Readings:
    """What the tools read of every token, [B, T, H] each; of one token of one head inside the loop."""

    surprise: Array
    write_size: Array
    state_norm: Array


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    return 'the ridge solver takes no gradients' if cfg.learner.solver == 'ridge' else None


def empty_state(cfg: Any, batch: int) -> Cell:
    """Cells of the right shapes; `fresh_state` has their values."""
    shapes = cfg.architecture.shapes(cfg.keys, cfg.values)
    slow = cfg.architecture.slow(cfg.values) | cfg.retention.slow(shapes)

    def cell() -> Cell:
        initial = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        return empty_cell(cfg, initial, {name: jnp.full(shape, value) for name, (shape, value) in slow.items()})

    lead = (batch, cfg.heads)
    return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), leaf.dtype), jax.eval_shape(cell))


def fresh_state(cfg: Any, fresh: Fresh) -> Cell:
    """The cell of every head before a document's first token."""
    del cfg
    return fresh.cell


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: Cell | None
) -> tuple[Float[Array, 'B T H V'], Cell | None]:
    """Outputs, and the cells after the call (None without cells)."""
    del rows
    cell = memory
    if cell is None:
        cell = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(tokens.q), *x.shape)), fresh.cell)
    y, cell, _ = trace(cfg, tokens, places, fresh, cell)
    return y, None if memory is None else cell


def readings(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, before: Cell, after: Cell
) -> dict[str, Array]:
    """What the tools read: of every token, and the weights after the call."""
    del rows
    _, _, found = trace(cfg, tokens, places, fresh, before)
    return state_sites(weights(cfg, fresh, after)) | {
        'surprise': found.surprise,
        'write_size': found.write_size,
        'state_norm': found.state_norm,
    }


def weights(cfg: Any, fresh: Fresh, memory: Cell) -> Weights:
    """The weights [B, H, ...] that a read would see."""
    return jax.vmap(jax.vmap(functools.partial(_current, cfg)), in_axes=(0, None))(memory, fresh)


def state_sites(weights: Weights) -> dict[str, Array]:
    """The sites of a memory's weights."""
    return {'state': weights[0]} if len(weights) == 1 else {f'state_{n}': w for n, w in enumerate(weights)}


def _current(cfg: Any, cell: Cell, fresh: Fresh) -> Weights:
    """The weights that a read after the last token would see (of a learner that averages: all of its steps)."""
    if cell.change is None or cfg.learner.per_chunk:
        return cfg.retention.weights(cell.anchor, fresh.initial, fresh.slow)
    parts = cfg.retention.parts(cell.anchor, fresh.initial, fresh.slow)
    return _read_weights(parts, cell, jnp.ones((), cell.kept.dtype))


def trace(
    cfg: Any, tokens: Tokens, places: Places, fresh: Fresh, cell: Cell
) -> tuple[Float[Array, 'B T H V'], Cell, Readings]:
    """Outputs, the cells after the call, and the readings of every token."""
    batch, length, heads = tokens.q.shape[:3]
    flags = [jnp.broadcast_to(x[..., None], (batch, length, heads)) for x in (places.real, places.new, places.place)]

    def split(x: Array) -> Array:
        """[B, T, ...] to [T / REMAT, REMAT, B, ...]; what fills it up is not real."""
        x = jnp.pad(x, ((0, 0), (0, -length % REMAT), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x, 1, 0).reshape(-1, REMAT, batch, *x.shape[2:])

    def join(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(-1, *x.shape[2:])[:length], 0, 1)

    step = functools.partial(_token, cfg)
    over_rows_and_heads = jax.vmap(jax.vmap(step), in_axes=(0, 0, None))

    @jax.checkpoint
    def group(cell: Cell, inputs: tuple) -> tuple[Cell, tuple]:
        return lax.scan(lambda cell, token: over_rows_and_heads(cell, token, fresh), cell, inputs)

    inputs = jax.tree.map(split, (tokens.wide(), *flags))
    cell, outputs = lax.scan(group, cell, inputs)
    y, found = jax.tree.map(join, outputs)
    return y, cell, found


def _token(cfg: Any, cell: Cell, inputs: tuple, fresh: Fresh) -> tuple[Cell, tuple[Array, Readings]]:
    """One token of one head."""
    token, real, new, place = inputs
    cell = choose(new, fresh.cell, cell)
    advance = _chunked if cfg.chunk > 1 else _online
    after, y, readings = advance(cfg, cell, token, place, fresh)
    y, readings = choose(real, (y, readings), jax.tree.map(jnp.zeros_like, (y, readings)))
    return choose(real, after, cell), (y, readings)


def _online(cfg: Any, cell: Cell, token: Tokens, place: Array, fresh: Fresh) -> tuple[Cell, Array, Readings]:
    """chunk = 1: every token moves the anchor."""
    del place
    keep, learner = cfg.retention, cfg.learner
    decay = None if token.log_decay is None else jnp.exp(token.log_decay)
    if decay is not None and decay.ndim:
        decay = decay[None, :]  # per key channel: the columns of the matrix
    anchor, momentum, recent = cell.anchor, cell.momentum, cell.recent
    surprise, size = [], []
    for n in range(learner.steps):
        one = token if learner.steps == 1 else token.replace(k=token.k[n], v=token.v[n], step=token.step[n])
        one = one.replace(step=implicit_step(one.step, one.k)) if learner.solver == 'implicit' else one
        kept = jnp.ones((), anchor[0].dtype) if decay is None or n else decay
        at = tuple(kept * w for w in anchor) if learner.error == 'decayed' else anchor
        weights = keep.weights(at, fresh.initial, fresh.slow)
        gradient, recent = _gradient(cfg, weights, one, recent, fresh.slow)
        theta = _theta(cfg, one)
        step = tuple(-theta * g for g in gradient)
        if momentum is not None:
            step = momentum = tuple(jnp.exp(one.log_momentum) * s + u for s, u in zip(momentum, step))
        anchor = keep.settle(anchor, kept, step, fresh.initial, fresh.slow, 1)
        surprise.append(norm(gradient))
        size.append(norm(step))
    seen = cell.anchor if learner.reads == 'before' else anchor
    y = _forward(cfg, keep.weights(seen, fresh.initial, fresh.slow), token.q, fresh.slow)
    readings = Readings(sum(surprise), sum(size), norm(keep.weights(cell.anchor, fresh.initial, fresh.slow)))
    return cell.replace(anchor=anchor, momentum=momentum, recent=recent), y, readings


def _chunked(cfg: Any, cell: Cell, token: Tokens, place: Array, fresh: Fresh) -> tuple[Cell, Array, Readings]:
    """chunk > 1: gradients at the anchor, which moves at the chunk's end."""
    keep, learner = cfg.retention, cfg.learner
    weights = keep.weights(cell.anchor, fresh.initial, fresh.slow)
    gradient, recent = _gradient(cfg, weights, token, cell.recent, fresh.slow)
    theta, one = _theta(cfg, token), jnp.ones((), weights[0].dtype)
    decay = one if token.log_decay is None else jnp.exp(token.log_decay)
    step, momentum, sums = tuple(-theta * g for g in gradient), cell.momentum, cell.sums
    if learner.per_chunk:
        gate = one if token.log_momentum is None else jnp.exp(token.log_momentum)
        sums = (sums[0] + token.step, sums[1] + gate)
        change = tuple(d + u for d, u in zip(cell.change, step))
    else:
        if momentum is not None:
            step = momentum = tuple(jnp.exp(token.log_momentum) * s + u for s, u in zip(momentum, step))
        change = tuple(decay * d + u for d, u in zip(cell.change, step))
    after = cell.replace(change=change, kept=decay * cell.kept, momentum=momentum, sums=sums, recent=recent)

    seen = weights
    if not learner.per_chunk:
        shown = cell if learner.reads == 'before' else after
        share = shares(cfg, fresh.slow, place[None])[0] if learner.averaged else one
        seen = _read_weights(keep.parts(cell.anchor, fresh.initial, fresh.slow), shown, share)
    y = _forward(cfg, seen, token.q, fresh.slow)
    after = choose(place == cfg.chunk - 1, settled(cfg, after, fresh), after)
    return after, y, Readings(norm(gradient), norm(step), norm(weights))


def _read_weights(parts: dual.Parts, cell: Cell, share: Array) -> Weights:
    """fixed + b fading + slope D."""
    weights = []
    for n, change in enumerate(cell.change):
        total = share * change if parts.slope is None else share * parts.slope[n] * change
        total = total if parts.fixed is None else total + parts.fixed[n]
        weights.append(total if parts.fading is None else total + cell.kept * parts.fading[n])
    return tuple(weights)


def _theta(cfg: Any, token: Tokens) -> Array:
    """The step's size; per channel it is part of the error instead."""
    return jnp.ones((), token.step.dtype) if cfg.gates.step.per == 'channel' else token.step


def _forward(cfg: Any, weights: Weights, x: Array, slow: dict[str, Array]) -> Array:
    """The network's output for one x."""
    return cfg.architecture.forward(lambda layer, h: dual.apply(weights[layer], h), x[None], slow)[0]


def _gradient(
    cfg: Any, weights: Weights, token: Tokens, recent: Recent | None, slow: dict[str, Array]
) -> tuple[Weights, Recent | None]:
    """The gradient of the token's inner loss (of its window's losses), and the window's new memory."""
    k, v = token.k[None], token.v[None]
    if cfg.learner.diagonal:  # a pair a key channel: their k k^T sum up to the diagonal of the token's
        k, v = jnp.diag(token.k), jnp.broadcast_to(v, (len(token.k), v.shape[-1]))
    own = Recent(
        k=k,
        v=v,
        weight=jnp.ones(1, weights[0].dtype) if token.weight is None else token.weight[None],
        threshold=None if token.threshold is None else token.threshold[None],
        channels=token.step[None] if cfg.gates.step.per == 'channel' else None,
    )
    if recent is not None:
        own = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), recent, own)
        recent = jax.tree.map(lambda x: x[1:], own)

    def predict(weights: Weights) -> Array:
        return cfg.architecture.forward(lambda layer, h: dual.apply(weights[layer], h), own.k, slow)

    prediction, pull = jax.vjp(predict, weights)
    error = cfg.bias.gradient(prediction, own.v, own.threshold) * own.weight[:, None]
    (gradient,) = pull(error if own.channels is None else error * own.channels)
    if token.erase is not None:
        along, written = token.erase
        held = dual.apply(weights[0], along[None])[0]
        gradient = (gradient[0] + held[:, None] * written[None, :],)
    return gradient, recent
