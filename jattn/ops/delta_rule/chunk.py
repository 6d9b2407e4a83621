"""One chunk of a delta rule on the plain matrices of one head: the mathematics that every fast form runs.

Both recurrences read the state before they write, and write what they read. With the state S at the chunk's start (kept
as [V, K]), token c writes a row e_c along b_c, and RWKV-7 also v_c along k_c:

    e_c = z_c + S (r_c ∘ before_c) + Σ_{s<c} rb_cs e_s + Σ_{s<c} rk_cs v_s
    y_c = scale · ( S (q'_c ∘ before_c) + Σ_{s≤c} qb_cs e_s + Σ_{s≤c} qk_cs v_s )         q'_c = q_c ∘ own_c
    S'  = S Diag(across) + Σ_s e_s (b_s ∘ out_of_s)^T + Σ_s v_s (k_s ∘ out_of_s)^T

| model                        | r                      | z    | b | k, v |
| ---------------------------- | ---------------------- | ---- | - | ---- |
| delta rule                   | -β own ∘ p             | β v  | k | none |
| delta rule, raw error        | -β p                   | β v  | k | none |
| diagonal plus low rank       | a                      | 0    | b | k, v |

    rb_cs = Σ_k r_ck b_sk exp(Σ_{s<t<c} log_decay_tk), s < c     (rk alike)         own_c = exp(log_decay_c)
    qb_cs = Σ_k q'_ck b_sk exp(Σ_{s<t<c} log_decay_tk), s < c;   q_c·b_c, s = c     (qk alike)
    before_c = exp(Σ_{t<c} log_decay_t)     out_of_s = exp(Σ_{t>s} log_decay_t)     across = exp(Σ_t log_decay_t)

All readers meet the state before their own token's decay, so q and r share every exponent; a read of the decayed state
carries that decay itself. The rows e are the solution of (I - rb) e = z + ..., by `inverse.py`. p is the key that the
error is read with, k itself unless another is given. Exponents are sums, as in `linear_attention/chunk.py`.

References: Yang et al. 2024, arXiv:2406.06484 (DeltaNet by chunks), 2412.06464 (Gated DeltaNet); Kimi Team 2025,
2510.26692 (a decay per channel); Peng et al. 2025, 2503.14456 (RWKV-7).
"""

import jax.numpy as jnp

from jattn.ops.delta_rule.inverse import unit_lower_inverse
from jattn.ops.linear_attention.chunk import Arithmetic, decays, on_diagonal, scores
from jattn.typing import Array, Float


def delta_rule(
    state: Float[Array, 'V K'],
    q: Float[Array, 'C K'],
    k: Float[Array, 'C K'],
    v: Float[Array, 'C V'],
    write_strength: Float[Array, 'C 1'],
    error_key: Float[Array, 'C K'] | None,
    log_decay: Float[Array, 'C N'] | None,
    *,
    raw_error: bool,
    scale: float,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, 'V K'], Float[Array, 'C V']]:
    """The state after the chunk and its outputs, in the state's dtype; log_decay [C, 1] or [C, K], None: 0."""
    q, k, v = (x.astype(state.dtype) for x in (q, k, v))
    reads = -write_strength * (k if error_key is None else error_key.astype(state.dtype))
    if not raw_error and log_decay is not None:
        reads *= jnp.exp(log_decay)
    return _step(state, q, reads, write_strength * v, [k], [], log_decay, scale, arithmetic)


def low_rank(
    state: Float[Array, 'V K'],
    q: Float[Array, 'C K'],
    k: Float[Array, 'C K'],
    v: Float[Array, 'C V'],
    a: Float[Array, 'C K'],
    b: Float[Array, 'C K'],
    log_decay: Float[Array, 'C N'] | None,
    *,
    scale: float,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, 'V K'], Float[Array, 'C V']]:
    """The state after the chunk and its outputs, in the state's dtype; log_decay [C, 1] or [C, K], None: 0."""
    q, k, v, a, b = (x.astype(state.dtype) for x in (q, k, v, a, b))
    return _step(state, q, a, None, [b, k], [v], log_decay, scale, arithmetic)


def _step(
    state: Float[Array, 'V K'],
    q: Float[Array, 'C K'],
    reads: Float[Array, 'C K'],
    targets: Float[Array, 'C V'] | None,
    keys: list[Float[Array, 'C K']],
    values: list[Float[Array, 'C V']],
    log_decay: Float[Array, 'C N'] | None,
    scale: float,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, 'V K'], Float[Array, 'C V']]:
    """reads r, targets z (None: 0); keys: b, then that of each of the values, which are written as they are."""
    multiply = arithmetic.multiply
    before, out_of, across = decays(log_decay, arithmetic, strict=True)
    faded = q if log_decay is None else q * jnp.exp(log_decay)
    pairs = [(reader, key) for reader in (reads, faded) for key in keys]
    products = scores(pairs, log_decay, arithmetic, strict=True)
    read, queried = products[: len(keys)], products[len(keys) :]

    rows = multiply('ck,vk->cv', reads * before, state)
    if targets is not None:
        rows += targets
    for product, value in zip(read[1:], values):
        rows += multiply('cs,sv->cv', product, value)
    written = [multiply('cs,sv->cv', unit_lower_inverse(-read[0]), rows), *values]

    y, state = multiply('ck,vk->cv', faded * before, state), across * state
    for product, key, value in zip(queried, keys, written):
        y += multiply('cs,sv->cv', product + on_diagonal(q, key), value)
        state += multiply('cv,ck->vk', value, key * out_of)
    return state, scale * y
