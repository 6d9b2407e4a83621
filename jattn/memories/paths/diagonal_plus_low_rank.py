"""A matrix memory whose transition is a diagonal plus rank one: decays per key channel, and erasing along other keys.

    S_t = S_{t-1} Diag(w_t) - theta_t (S_{t-1} a_t) b_t^T + theta_t v_t k_t^T

`ops.gated_linear_attention` (dot), `ops.gated_delta_rule` with decays per channel (l2: Kimi Delta Attention), and
`ops.diagonal_plus_low_rank` (RWKV-7, Comba). Decays per head are spread over the channels.
"""

from typing import Any

import jax.numpy as jnp

from jattn.contract import Rows
from jattn.memories.learner import implicit_step
from jattn.memories.paths.exact import matrix_refusal
from jattn.memories.paths.matrix import MatrixState, start
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Places, Tokens
from jattn.ops import diagonal_plus_low_rank, gated_delta_rule, gated_linear_attention
from jattn.typing import Array, Float


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    if cfg.learner.momentum or cfg.learner.steps > 1:
        return 'momentum and several steps a token are no transition of rank one'
    if cfg.bias.erases and cfg.has_start:
        return 'a memory that erases along keys of its own starts at zero'
    return matrix_refusal(cfg)


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: MatrixState | None
) -> tuple[Float[Array, 'B T H V'], MatrixState | None]:
    """Outputs, and the state after the call (None without one)."""
    del places
    share, state = start(cfg, tokens, rows, fresh, memory)
    q, k, v, step, log_decay = tokens.q, tokens.k, tokens.v, tokens.step, tokens.log_decay
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = jnp.broadcast_to(log_decay[..., None], k.shape)
    keywords = dict(
        initial_state=None if state is None else state.memory,
        return_state=True,
        scale=1.0,
        segments=rows.segments,
        chunk=cfg.tile,
    )
    if cfg.bias.is_constant and not cfg.bias.erases:
        written = (step if step.ndim == 4 else step[..., None]) * v
        y, memory = gated_linear_attention(q, k, written, log_decay, implementation=cfg.implementation, **keywords)
    elif cfg.bias.erases:
        along, written = tokens.erase
        y, memory = diagonal_plus_low_rank(
            q, k, step[..., None] * v, log_decay, -step[..., None] * along, written, **keywords
        )
    else:
        step = implicit_step(step, k) if cfg.learner.solver == 'implicit' else step
        is_raw = cfg.learner.error == 'raw'
        if share is not None:
            v = v - share.read(k, share.before if is_raw else share.after)
        y, memory = gated_delta_rule(q, k, v, log_decay, step, raw_error=is_raw, **keywords)
    if share is not None:
        y = share.add(y, q, rows)
    return y, None if state is None else state.replace(memory=memory)
