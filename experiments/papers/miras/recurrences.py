"""Every row of Miras' Table 1 as its own paper writes it: token by token, in numpy, one head, nothing shared.

    W_t from W_{t-1}, k_t, v_t and the token's gates                    y_t = what W_t answers to q_t

The table `ROWS` at the end names each row's recurrence and the member of `jattn.memories.MEMORIES` that must equal it.
W is V x K and acts on keys from the left. Where gradients are taken at the start of chunks (the networks), they are
written out by hand here, layer by layer, while the memory takes them with `jax.vjp` or in the dual form.

Sources: Behrouz et al. 2025 (Miras), Table 1, and each model's paper; those of `jattn/memories/members.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jattn.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Stream:
    """The tokens of one head, and what the memory starts with.

    Attributes:
        q, k, v: [T, K], [T, K], [T, V]; with several steps a token k [T, N, K] and v [T, N, V].
        step: theta (also beta, dt): [T], [T, V] a value channel, or [T, N].
        log_decay: [T], or [T, K] a key channel; None: nothing is forgotten.
        log_momentum, threshold: [T]; None: there is none.
        erase: RWKV-7's (kk, kk a), [T, K] each; None: elsewhere.
        head, heads: which head of how many.
        initial: W_0, one matrix a layer.
        slow: scale and shift of the norm and the like, by name.
        chunk: tokens that share the weights of their gradients.
    """

    q: Float[Array, 'T K']
    k: Array
    v: Array
    step: Array
    log_decay: Array | None
    log_momentum: Array | None
    threshold: Array | None
    erase: tuple[Array, Array] | None
    head: int
    heads: int
    initial: tuple[Array, ...]
    slow: dict[str, Array]
    chunk: int

    @property
    def decay(self) -> Array:
        """a_t."""
        return np.exp(self.log_decay)


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


# Networks. Activations with their derivatives, and the norm with its vjp, by hand.
def _silu(x: Array) -> tuple[Array, Array]:
    gate = 1 / (1 + np.exp(-x))
    return x * gate, gate * (1 + x * (1 - gate))


def _gelu(x: Array) -> tuple[Array, Array]:
    """The tanh form."""
    root = np.sqrt(2 / np.pi)
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    return x * (1 + tanh) / 2, (1 + tanh) / 2 + x * (1 - tanh**2) / 2 * root * (1 + 3 * 0.044715 * x**2)


def _norm(h: Array, slow: dict[str, Array], epsilon: float) -> tuple[Array, Callable[[Array], Array]]:
    """LayerNorm of a vector, and the map from the gradient of its output to that of h."""
    centred = h - h.mean()
    root = np.sqrt(np.mean(centred**2) + epsilon)
    unit = centred / root

    def pull(gradient: Array) -> Array:
        gradient = gradient * slow['norm_scale']
        return (gradient - gradient.mean() - unit * np.mean(gradient * unit)) / root

    return unit * slow['norm_scale'] + slow['norm_shift'], pull


@dataclasses.dataclass(frozen=True)
class Network:
    """M(x) = x + LayerNorm(W_2 act(W_1 x)), or x + LayerNorm(W_1 x): its answers and, by hand, its gradients."""

    activation: Callable[[Array], tuple[Array, Array]] | None = None
    use_bias: bool = False
    epsilon: float = 1e-5

    def answer(self, weights: list[Array], x: Array, slow: dict[str, Array]) -> Array:
        """M(x)."""
        return x + _norm(self._layers(weights, x)[0], slow, self.epsilon)[0]

    def gradients(
        self, weights: list[Array], k: Array, slow: dict[str, Array], loss: Callable[[Array], Array]
    ) -> list[Array]:
        """The gradients of loss(M(k)) by the weights; `loss` gives the gradient by the prediction."""
        h, inputs, slope = self._layers(weights, k)
        normed, pull = _norm(h, slow, self.epsilon)
        error = pull(loss(k + normed))
        if len(weights) == 1:
            return [np.outer(error, inputs[0])]
        inner = (error @ weights[1])[: len(slope)] * slope
        return [np.outer(inner, inputs[0]), np.outer(error, inputs[1])]

    def _layers(self, weights: list[Array], x: Array) -> tuple[Array, list[Array], Array | None]:
        """The last layer's output, every layer's input (with a one for its bias), the activation's derivative."""
        inputs = [np.append(x, 1) if self.use_bias else x]
        h = weights[0] @ inputs[0]
        if len(weights) == 1:
            return h, inputs, None
        h, slope = self.activation(h)
        inputs.append(np.append(h, 1) if self.use_bias else h)
        return weights[1] @ inputs[1], inputs, slope


def _l2(s: Stream, t: int) -> Callable[[Array], Array]:
    return lambda prediction: prediction - s.v[t]


def ttt(network: Network) -> Recurrence:
    """W_t = W_start - (1/n + offset_n) sum of the chunk's first n theta g, g at W_start."""

    def run(s: Stream) -> Array:
        start, reads = list(s.initial), []
        for t in range(len(s.q)):
            place = t % s.chunk
            if place == 0:
                total = [np.zeros_like(w) for w in start]
            found = network.gradients(start, s.k[t], s.slow, _l2(s, t))
            total = [d + s.step[t] * g for d, g in zip(total, found)]
            share = max(0, 1 / (place + 1) + s.slow['offsets'][place])
            now = [w - share * d for w, d in zip(start, total)]
            reads.append(network.answer(now, s.q[t], s.slow))
            if place == s.chunk - 1:
                start = now
        return np.stack(reads)

    return run


def titans(s: Stream) -> Array:
    """S_t = eta S_{t-1} - theta g,   W_t = a W_{t-1} + S_t, g at the weights of the chunk's start."""
    network, reads = Network(_silu), []
    weights, start = list(s.initial), list(s.initial)
    surprise = [np.zeros_like(w) for w in weights]
    for t in range(len(s.q)):
        if t % s.chunk == 0:
            start = weights
        found = network.gradients(start, s.k[t], s.slow, _l2(s, t))
        surprise = [np.exp(s.log_momentum[t]) * m - s.step[t] * g for m, g in zip(surprise, found)]
        weights = [s.decay[t] * w + m for w, m in zip(weights, surprise)]
        reads.append(network.answer(weights, s.q[t], s.slow))
    return np.stack(reads)


def yaad(s: Stream) -> Array:
    """W_t = a W_{t-1} - eta g of the Huber loss: rows of the error beyond delta keep its direction, at length delta."""
    network, reads = Network(_gelu), []
    weights, start = list(s.initial), list(s.initial)
    for t in range(len(s.q)):
        if t % s.chunk == 0:
            start = weights

        def huber(prediction: Array, t: int = t) -> Array:
            error = prediction - s.v[t]
            return s.step[t] * error * min(1, s.threshold[t] / np.linalg.norm(error))

        found = network.gradients(start, s.k[t], s.slow, huber)
        weights = [s.decay[t] * w - g for w, g in zip(weights, found)]
        reads.append(network.answer(weights, s.q[t], s.slow))
    return np.stack(reads)


def moneta(s: Stream, p: float = 3.0, q: float = 4.0) -> Array:
    """A_t = a A_{t-1} - eta g of the l_p loss,   W_t = A_t / norm_q(A)^(q-2); gradient and norm at the chunk's start.

    As the member has it: A_0 = W_0 / norm_q(W_0), the norm clamped to 0.3 .. 3 in the divisor, errors to 3 in the loss.
    """
    network, reads = Network(_gelu), []

    def norm(a: Array) -> float:
        return np.sum(np.abs(a) ** q) ** (1 / q)

    held = [w / norm(w) for w in s.initial]
    for t in range(len(s.q)):
        if t % s.chunk == 0:
            divisors = [np.clip(norm(a), 0.3, 3.0) ** (q - 2) for a in held]
            start = [a / d for a, d in zip(held, divisors)]

        def power(prediction: Array, t: int = t) -> Array:
            error = np.clip(prediction - s.v[t], -3, 3)
            return s.step[t] * p * error * (error**2 + 1e-6) ** (p / 2 - 1)

        found = network.gradients(start, s.k[t], s.slow, power)
        held = [s.decay[t] * a - g for a, g in zip(held, found)]
        reads.append(network.answer([a / d for a, d in zip(held, divisors)], s.q[t], s.slow))
    return np.stack(reads)


def memora(s: Stream) -> Array:
    """W = c softmax(L) at the starts of chunks,   L_t = a L_{t-1} - eta g; inside a chunk the steps are added to W."""
    network, reads = Network(_gelu), []
    logits = list(s.initial)

    def softmax(n: int) -> Array:
        power = np.exp(logits[n] - logits[n].max(axis=1, keepdims=True))
        return np.exp(s.slow[f'log_total_{n}']) * power / power.sum(axis=1, keepdims=True)

    for t in range(len(s.q)):
        if t % s.chunk == 0:
            start = [softmax(n) for n in range(len(logits))]
            change = [np.zeros_like(w) for w in start]

        def l2(prediction: Array, t: int = t) -> Array:
            return s.step[t] * (prediction - s.v[t])

        found = network.gradients(start, s.k[t], s.slow, l2)
        logits = [s.decay[t] * a - g for a, g in zip(logits, found)]
        change = [s.decay[t] * d - g for d, g in zip(change, found)]
        reads.append(network.answer([w + d for w, d in zip(start, change)], s.q[t], s.slow))
    return np.stack(reads)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        member: its name in `MEMORIES`.
        recurrence: what it must equal.
        value_decays: the memory's values and reads are scaled so that value channels decay as `value_decay` says: with
            B_t their running product, W = Diag(B_t) W~, where W~ writes v / B_t and is read times B_t.
    """

    member: str
    recurrence: Recurrence
    value_decays: bool = False


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
    'TTT-MLP': Row('ttt_mlp', ttt(_TTT(_gelu))),
    'Titans LMM': Row('titans_lmm', titans),
    'Moneta': Row('moneta', moneta),
    'Yaad': Row('yaad', yaad),
    'Memora': Row('memora', memora),
}
