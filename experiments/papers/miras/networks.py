"""The rows of Miras' Table 1 whose memory is a network, token by token in numpy, one head: TTT, Titans, Moneta, Yaad,
Memora; activations with their derivatives, and the norm with its vjp, by hand.

Gradients are taken at the weights of the chunk's start, layer by layer: E_2 = pull(dl/dM), E_1 = (E_2 W_2) act'(Z_1),
and the gradient of layer l is E_l times its input.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments.papers.miras.stream import Stream
from jattn.typing import Array


def silu(x: Array) -> tuple[Array, Array]:
    """x sigmoid(x), and its derivative."""
    gate = 1 / (1 + np.exp(-x))
    return x * gate, gate * (1 + x * (1 - gate))


def gelu(x: Array) -> tuple[Array, Array]:
    """The tanh form, and its derivative."""
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


def ttt(network: Network) -> Callable[[Stream], Array]:
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
    network, reads = Network(silu), []
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


def yaad(s: Stream, towards_start: bool = False) -> Array:
    """W_t = a W_{t-1} - eta g of the Huber loss: rows of the error beyond delta keep its direction, at length delta.

    With `towards_start` what is forgotten leaves W_0 behind: W_t = W_0 + a (W_{t-1} - W_0) - eta g.
    """
    network, reads = Network(gelu), []
    rest = [w if towards_start else np.zeros_like(w) for w in s.initial]
    weights, start = list(s.initial), list(s.initial)
    for t in range(len(s.q)):
        if t % s.chunk == 0:
            start = weights

        def huber(prediction: Array, t: int = t) -> Array:
            error = prediction - s.v[t]
            return s.step[t] * error * min(1, s.threshold[t] / np.linalg.norm(error))

        found = network.gradients(start, s.k[t], s.slow, huber)
        weights = [r + s.decay[t] * (w - r) - g for r, w, g in zip(rest, weights, found)]
        reads.append(network.answer(weights, s.q[t], s.slow))
    return np.stack(reads)


def moneta(s: Stream, p: float = 3.0, q: float = 4.0) -> Array:
    """A_t = a A_{t-1} - eta g of the l_p loss,   W_t = A_t / norm_q(A)^(q-2); gradient and norm at the chunk's start.

    As the member has it: A_0 = W_0 / norm_q(W_0), the norm clamped to 0.3 .. 3 in the divisor, errors to 3 in the loss.
    """
    network, reads = Network(gelu), []

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
    network, reads = Network(gelu), []
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
