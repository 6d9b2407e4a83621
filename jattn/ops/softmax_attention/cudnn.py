"""Softmax attention by cuDNN, through `jax.nn.dot_product_attention`, for the calls that it is sure to serve.

It takes half precision, heads of equal size K = V (a multiple of 8, at most 256, before Hopper 128), causal masks and
causal windows by index. Its own biases, segments and paddings carry conditions on lengths and layouts; such calls stay
with `xla.py`.
"""

import jax
import jax.numpy as jnp
from jax.extend import backend

from jattn.ops.softmax_attention.visibility import Rule
from jattn.typing import Array, Float

LARGEST_HEAD, LARGEST_HEAD_BEFORE_HOPPER = 256, 128


def why_not(
    rule: Rule, q: Array, k: Array, v: Array, *, bias: Array | None, softcap: float | None, positions: object
) -> str | None:
    """Why cuDNN cannot serve this call in this process, in words; None: it can."""
    return _call_reason(rule, q, k, v, bias, softcap, positions) or _device_reason(q.shape[-1])


def _call_reason(
    rule: Rule, q: Array, k: Array, v: Array, bias: Array | None, softcap: float | None, positions: object
) -> str | None:
    channels = q.shape[-1]
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float16, jnp.bfloat16):
        return f'q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, but all float16 or all bfloat16 was expected'
    if v.shape[-1] != channels or channels % 8 or channels > LARGEST_HEAD:
        return f'K={channels} and V={v.shape[-1]} must be equal, a multiple of 8 and at most {LARGEST_HEAD}'
    if rule.window is not None and not rule.causal:
        return f'window={rule.window} needs causal=True'
    unserved = {
        'bias': bias is not None,
        'softcap': softcap is not None,
        'segments': rule.segmented,
        'positions': rule.ordered and positions is not None,
        'sinks': rule.sinks > 0,
    }
    given = [name for name, is_given in unserved.items() if is_given]
    return f'it does not serve {", ".join(given)}' if given else None


def _device_reason(channels: int) -> str | None:
    client = backend.get_backend()
    if client.platform != 'gpu' or 'cuda' not in client.platform_version:
        return f'the default backend is {client.platform!r}, not an NVIDIA GPU'
    hopper = float(jax.local_devices()[0].compute_capability) >= 9.0
    if channels > LARGEST_HEAD_BEFORE_HOPPER and not hopper:
        return f'K={channels} must be at most {LARGEST_HEAD_BEFORE_HOPPER} before Hopper'
    return None


def cudnn_attention(
    rule: Rule, scale: float, q: Float[Array, 'B T H K'], k: Float[Array, 'B S G K'], v: Float[Array, 'B S G V']
) -> Float[Array, 'B T H V']:
    """Attention of a call that `why_not` allows."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=rule.causal,
        local_window_size=None if rule.window is None else (rule.window - 1, 0),
        implementation='cudnn',
    )
