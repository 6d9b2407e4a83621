"""Every row of Miras' Table 1 as its own paper writes it: token by token, in numpy, one head, nothing shared.

    W_t from W_{t-1}, k_t, v_t and the token's gates                    y_t = what W_t answers to q_t

The table `ROWS` at the end names each row's recurrence and the member of `jattn.memories.MEMORIES` that must equal it.
W is V x K and acts on keys from the left. Where gradients are taken at the start of chunks (`networks.py`), they are
written out by hand, layer by layer, while the memory takes them with `jax.vjp` or in the dual form.

Sources: Behrouz et al. 2025 (Miras), Table 1, and each model's paper; those of `jattn/memories/members.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from experiments.papers.miras.networks import Network, gelu, memora, moneta, titans, ttt, yaad
from experiments.papers.miras.stream import Stream
from jattn.memories.retention import KL, Decay, Lq, Retention
from jattn.typing import Array, Float

Recurrence = Callable[[Stream], Float[Array, 'T V']]
Write = Callable[[Stream, int, Array], Array]  # (tokens, t, W_{t-1}) -> W_t


def matrix(write: Write) -> Recurrence:
    """A recurrence from its write: W_0 = 0, y_t = W_t q_t."""

    def run(s: Stream) -> Array:
        weights = np.zeros((s.v.shape[-1], s.q.shape[-1]), s.q.dtype)
        reads = []
        for t in range(len(s.q)):
            weights = write(s, t, weights)
            reads.append(weights @ s.q[t])
        return np.stack(reads)

    return run


def _delta(weights: Array, k: Array, v: Array, strength: float) -> Array:
    """W (I - b k k^T) + b v k^T."""
    return weights @ (np.eye(len(k)) - strength * np.outer(k, k)) + strength * np.outer(v, k)


def linear_attention(s: Stream, t: int, w: Array) -> Array:
    """W + v k^T; the keys have their features, the values a one for the normaliser."""
    return w + np.outer(s.v[t], s.k[t])


def retnet(s: Stream, t: int, w: Array) -> Array:
    """gamma W + v k^T, gamma = 1 - 2^(-5 - h)."""
    return (1 - 2.0 ** (-5 - s.head)) * w + np.outer(s.v[t], s.k[t])


def lightning(s: Stream, t: int, w: Array) -> Array:
    """gamma W + v k^T, gamma = exp(-2^(-8 (h + 1) / H))."""
    return np.exp(-(2.0 ** (-8 * (s.head + 1) / s.heads))) * w + np.outer(s.v[t], s.k[t])


def decaying_fast_weights(s: Stream, t: int, w: Array) -> Array:
    """(b a^T) o W + v k^T, with b on the value and a on the key channels; b is a wave that no layer made."""
    return np.outer(value_decay(t, len(s.v[t])), s.decay[t]) * w + np.outer(s.v[t], s.k[t])


def value_decay(t: int, values: int) -> Float[Array, 'V']:
    """The decays of the value channels that `decaying_fast_weights` is tried with, 0.8 to 1."""
    return 0.9 + 0.1 * np.cos(t + np.arange(values))


def gla(s: Stream, t: int, w: Array) -> Array:
    """W Diag(a) + v k^T."""
    return w @ np.diag(s.decay[t]) + np.outer(s.v[t], s.k[t])


def mamba2(s: Stream, t: int, w: Array) -> Array:
    """a W + dt x B^T; x stands in v, B in k, C in q, and dt is the step."""
    return s.decay[t] * w + s.step[t] * np.outer(s.v[t], s.k[t])


def hgrn2(s: Stream, t: int, w: Array) -> Array:
    """W Diag(a) + v (1 - a)^T."""
    return w @ np.diag(s.decay[t]) + np.outer(s.v[t], 1 - s.decay[t])


def deltanet(s: Stream, t: int, w: Array) -> Array:
    """W (I - b k k^T) + b v k^T."""
    return _delta(w, s.k[t], s.v[t], s.step[t])


def longhorn(s: Stream, t: int, w: Array) -> Array:
    """W (I - d k k^T) + d v k^T, d = b / (1 + b k.k)."""
    return _delta(w, s.k[t], s.v[t], s.step[t] / (1 + s.step[t] * s.k[t] @ s.k[t]))


def gated_deltanet(s: Stream, t: int, w: Array) -> Array:
    """a W (I - b k k^T) + b v k^T."""
    return _delta(s.decay[t] * w, s.k[t], s.v[t], s.step[t])


def delta_product(s: Stream, t: int, w: Array) -> Array:
    """a W, then a delta step for every key of the token."""
    w = s.decay[t] * w
    for k, v, strength in zip(s.k[t], s.v[t], s.step[t], strict=True):
        w = _delta(w, k, v, strength)
    return w


def rwkv7(s: Stream, t: int, w: Array) -> Array:
    """W Diag(w) - (W kk) (kk a)^T + v k^T."""
    along, scaled = s.erase[0][t], s.erase[1][t]
    return w @ np.diag(s.decay[t]) - np.outer(w @ along, scaled) + np.outer(s.v[t], s.k[t])


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        member: its name in `MEMORIES`.
        recurrence: what it must equal.
        retention: in place of the member's, where the paper prints another; None: the member's own.
        value_decays: the memory's values and reads are scaled so that value channels decay as `value_decay` says: with
            B_t their running product, W = Diag(B_t) W~, where W~ writes v / B_t and is read times B_t.
    """

    member: str
    recurrence: Recurrence
    value_decays: bool = False
    retention: Retention | None = None


_TTT = functools.partial(Network, use_bias=True, epsilon=1e-6)
ROWS: dict[str, Row] = {
    'linear attention': Row('linear_attention', matrix(linear_attention)),
    'RetNet': Row('retnet', matrix(retnet)),
    'Lightning Attention': Row('lightning', matrix(lightning)),
    'decaying fast weights': Row('gla', matrix(decaying_fast_weights), value_decays=True),
    'GLA': Row('gla', matrix(gla)),
    'Mamba2': Row('mamba2', matrix(mamba2)),
    'HGRN2': Row('hgrn2', matrix(hgrn2)),
    'DeltaNet': Row('deltanet', matrix(deltanet)),
    'Longhorn': Row('longhorn', matrix(longhorn)),
    'TTT-Linear': Row('ttt_linear', ttt(_TTT())),
    'Gated DeltaNet': Row('gated_deltanet', matrix(gated_deltanet)),
    'RWKV-7': Row('rwkv7', matrix(rwkv7)),
    'DeltaProduct': Row('delta_product', matrix(delta_product)),
    'TTT-MLP': Row('ttt_mlp', ttt(_TTT(gelu))),
    'Titans LMM': Row('titans_lmm', titans, retention=Decay()),
    'Moneta': Row('moneta', moneta, retention=Lq()),
    'Yaad': Row('yaad', yaad, retention=Decay()),
    'Yaad, forgetting towards W_0': Row('yaad', functools.partial(yaad, towards_start=True)),
    'Memora': Row('memora', memora, retention=KL()),
}
