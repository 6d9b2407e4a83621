"""The one public function of softmax attention, and which implementation serves a call."""

import functools
import numbers

import jax.numpy as jnp
from jax import lax

from jattn.ops.softmax_attention import cudnn, reference, visibility, xla
from jattn.typing import Array, Float, axis_sizes

IMPLEMENTATIONS = (None, 'reference', 'xla', 'cudnn')

# So few queries (a step of generation) read the keys once whatever the form; blocks would only copy them first.
FEW_QUERIES = 8


def attention(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    v: Float[Array, 'B S G V'],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    segments: Array | visibility.Pair | None = None,
    positions: Array | visibility.Pair | None = None,
    bias: Float[Array, 'B H T S'] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, 'B T H V']:
    """Softmax attention: each query's mean of the values of the keys it sees, weighted by exp(score).

        out_t = Σ_s softmax_s(scale q_t·k_s + bias_ts) v_s      with softcap c: c tanh(scale q_t·k_s / c) + bias_ts

    Query head h reads key head h // (H // G). A query that sees nobody gives 0, with gradients 0; what a query does not
    see has a gradient of exactly 0. Scores, softmax and sums are float32 at least.

    Args:
        q: queries.
        k: keys, G heads where H is a multiple of G.
        v: values; V may differ from K.
        causal: a query sees the keys whose position does not exceed its own.
        window: a query sees the keys fewer than `window` positions away (with causal: behind it, itself included).
        sinks: the keys at positions 0 .. sinks-1 of a document stay visible beside the window.
        segments: document ids [B,T] (then T = S) or a pair ([B,T], [B,S]); a query sees its own document alone, and
            id 0 is padding. None: one document.
        positions: [B,T] or a pair, in any order; None: counted by index (T = S), for sinks within each segment.
        bias: [B or 1, H or 1, T, S], added to the scores; differentiable.
        softcap: c, bounds the scores to (-c, c) before the bias; None: unbounded.
        scale: None: K^-1/2.
        implementation: 'reference' (all T x S pairs), 'xla' (blocks, memory linear in T), 'cudnn', or None: cuDNN on an
            NVIDIA GPU where it serves the call, else xla, and for a few queries the reference.

    Returns:
        [B,T,H,V] in the dtype of v. 'xla' and 'cudnn' have a reverse derivative of first order; 'reference' has all.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an implementation that cannot serve the call.

    >>> q = k = jnp.zeros((1, 3, 2, 4))
    >>> v = jnp.arange(3.0).reshape(1, 3, 1, 1).repeat(2, axis=2)
    >>> attention(q, k, v, causal=True)[0, :, 0, 0].tolist()
    [0.0, 0.5, 1.0]
    """
    sizes = axis_sizes('attention', q=(q, 'B T H K'), k=(k, 'B S G K'), v=(v, 'B S G V'))
    scale = reference.default_scale(scale, q)
    _check(sizes, q, k, v, bias, softcap, scale, implementation)
    rule, query, key = visibility.locate(q, k, causal, window, sinks, segments, positions)

    reason = cudnn.why_not(rule, q, k, v, bias=bias, softcap=softcap, positions=positions)
    if implementation == 'cudnn' and reason is not None:
        raise ValueError(f"attention: implementation='cudnn' cannot serve this call: {reason}")
    if implementation is None and sizes['T'] <= FEW_QUERIES:
        implementation = 'reference'

    if implementation == 'reference':
        mask = visibility.visible(rule, query, key)
        scores = reference.attention_scores(q, k, mask, bias=bias, softcap=softcap, scale=scale)
        return reference.attend(reference.attention_pattern(scores, mask), v)
    by_cudnn = functools.partial(cudnn.cudnn_attention, rule, scale)
    if implementation == 'cudnn':
        return by_cudnn(q, k, v)
    by_blocks = functools.partial(xla.xla_attention, rule, query, key, bias=bias, softcap=softcap, scale=scale)
    if implementation is None and reason is None:
        # Chosen at lowering, not at tracing: a program for CPU or TPU may be lowered on a host that has a GPU.
        return lax.platform_dependent(q, k, v, cuda=by_cudnn, default=by_blocks)
    return by_blocks(q, k, v)


def _check(
    sizes: dict[str, int],
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    softcap: float | None,
    scale: float | None,
    implementation: str | None,
) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'attention: implementation={implementation!r}, but one of {IMPLEMENTATIONS} was expected')
    for name, array in (('q', q), ('k', k), ('v', v)):
        if not jnp.issubdtype(array.dtype, jnp.floating) or 0 in array.shape:
            raise ValueError(
                f'attention: {name} is {array.dtype}{array.shape}, but a filled floating array was expected'
            )
    if sizes['H'] % sizes['G']:
        raise ValueError(
            f'attention: q has H={sizes["H"]} heads, but a multiple of the G={sizes["G"]} of k was expected'
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f'attention: softcap={softcap}, but a number above 0, or None, was expected')
    if not isinstance(scale, numbers.Real):
        raise ValueError(
            f'attention: scale={scale!r}, but a plain number was expected; multiply q by one that is learned'
        )
    if bias is not None:
        wanted = tuple(sizes[axis] for axis in 'BHTS')
        fits = len(bias.shape) == 4 and bias.shape[2:] == wanted[2:]
        if not fits or any(size not in (1, full) for size, full in zip(bias.shape, wanted)):
            raise ValueError(
                f'attention: bias has shape {bias.shape}, but {wanted}, its B and H perhaps 1, was expected'
            )
