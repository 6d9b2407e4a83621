"""A matrix memory with dot product or l2, every gradient at the weights of its own token: exact, and as fast as chunks.

The inner error is linear in the weights, so the errors of a chunk solve a triangular system, and the size of the chunk
(`tile`) has no effect on the result: `ops.gated_linear_attention` (dot), `ops.gated_delta_rule` (l2), and
`ops.momentum_delta_rule`. Decays are per head. Several steps a token are a sequence as many times longer, with decay
at the first and the read at the last of them.
"""

from typing import Any

import jax.numpy as jnp

from jattn.contract import Rows
from jattn.memories.learner import implicit_step
from jattn.memories.paths.matrix import MatrixState, Start, start
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Places, Tokens
from jattn.ops import gated_delta_rule, gated_linear_attention
from jattn.ops.fast_weights import momentum_delta_rule
from jattn.typing import Array, Float


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    decay = cfg.gates.decay
    if decay is not None and decay.per == 'channel':
        return 'its decay is per channel (diagonal_plus_low_rank)'
    if cfg.bias.erases:
        return f'bias {type(cfg.bias).__name__} erases along a key of its own (diagonal_plus_low_rank)'
    return matrix_refusal(cfg)


def matrix_refusal(cfg: Any) -> str | None:
    """What neither this path nor `diagonal_plus_low_rank` can run."""
    learner = cfg.learner
    if not cfg.architecture.is_linear:
        return 'the architecture is not a matrix'
    if not cfg.bias.solvable:
        return 'the error of its bias is not linear in the weights'
    if not cfg.retention.is_linear:
        return 'its retention is not linear in the weights'
    if learner.solver == 'ridge':
        return 'the ridge solver has a path of its own'
    if learner.diagonal:
        return 'a step that keeps the diagonal of k k^T alone has a path of its own'
    if learner.window > 1 or learner.per_chunk or learner.averaged or learner.reads == 'before':
        return 'its learner needs gradients at the start of chunks'
    if cfg.chunk > 1:
        return f'chunk={cfg.chunk} takes gradients at the start of chunks'
    if learner.momentum and cfg.bias.is_constant:
        return 'momentum goes with the l2 bias'
    if learner.momentum and learner.error == 'decayed':
        return 'momentum takes its errors at the weights before the decay'
    if cfg.gates.step.per == 'channel' and not cfg.bias.is_constant:
        return 'its step is per value channel'
    return None


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: MatrixState | None
) -> tuple[Float[Array, 'B T H V'], MatrixState | None]:
    """Outputs, and the state after the call (None without one)."""
    del places
    share, state = start(cfg, tokens, rows, fresh, memory)
    q, v = tokens.q, tokens.v
    keywords = dict(return_state=True, scale=1.0, segments=rows.segments, chunk=cfg.tile)
    initial = None if state is None else state.memory
    momentum = None
    if cfg.bias.is_constant:
        step = tokens.step if tokens.step.ndim == 4 else tokens.step[..., None]
        y, memory = gated_linear_attention(
            q,
            tokens.k,
            step * v,
            tokens.log_decay,
            initial_state=initial,
            implementation=cfg.implementation,
            **keywords,
        )
    elif cfg.learner.momentum:
        v = v if share is None else v - share.read(tokens.k, share.before)
        before = None if state is None else (initial, state.momentum)
        y, (memory, momentum) = momentum_delta_rule(
            q, tokens.k, v, tokens.log_decay, tokens.log_momentum, tokens.step, initial_state=before, **keywords
        )
    else:
        y, memory = _delta_rule(cfg, tokens, share, initial, keywords)
    if share is not None:
        y = share.add(y, q, rows)
    return y, None if state is None else state.replace(memory=memory, momentum=momentum)


def _delta_rule(
    cfg: Any, tokens: Tokens, share: Start | None, initial: Array | None, keywords: dict
) -> tuple[Array, Array]:
    """`ops.gated_delta_rule` over the sub-steps of every token."""
    learner, steps = cfg.learner, cfg.learner.steps
    q, k, v, step, log_decay = tokens.q, tokens.k, tokens.v, tokens.step, tokens.log_decay
    if steps > 1:
        batch, length = q.shape[:2]

        def only(x: Array, at: int) -> Array:
            places = [(0, 0), (0, 0), (at, steps - 1 - at), *[(0, 0)] * (x.ndim - 2)]
            return jnp.pad(x[:, :, None], places).reshape(batch, length * steps, *x.shape[2:])

        k, v, step = (
            jnp.moveaxis(x, 3, 2).reshape(batch, length * steps, x.shape[2], *x.shape[4:]) for x in (k, v, step)
        )
        q = only(q, steps - 1)
        log_decay = None if log_decay is None else only(log_decay, 0)
        if keywords['segments'] is not None:
            keywords = keywords | {'segments': jnp.repeat(keywords['segments'], steps, axis=1)}
    if learner.solver == 'implicit':
        step = implicit_step(step, k)
    if share is not None:
        v = v - share.read(k, _sub_steps(share, steps, learner.error == 'raw'))
    y, memory = gated_delta_rule(
        q, k, v, log_decay, step, raw_error=learner.error == 'raw', initial_state=initial, **keywords
    )
    return y[:, steps - 1 :: steps], memory


def _sub_steps(share: Start, steps: int, is_raw: bool) -> tuple[Array, None]:
    """The start's factors where every sub-step takes its error: the decay stands before the first, or right after."""
    after, before = (jnp.repeat(x[0], steps, axis=1) for x in (share.after, share.before))
    first = (jnp.arange(after.shape[1]) % steps == 0).reshape(1, -1, *[1] * (after.ndim - 2))
    return (jnp.where(first, before, after) if is_raw else after), None
