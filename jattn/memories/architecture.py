"""The first choice: what the memory is. Each kind is a frozen config with pure functions for the weights of one head.

    prediction = forward(product, x, slow)

`product(l, x)` is the product of weight l with rows x; `forward` leaves it open, so that the same network runs with
fixed weights, with the weights of a chunk's every token (`ops/fast_weights/dual.py`) or under `jax.vjp`. `slow` are
parameters that only the outer loop learns (the scale and shift of a norm).

| name | memory | weights of a head |
| --- | --- | --- |
| vector | w * x | [V] |
| matrix | W x | [V, K] |
| mlp | post(W_n act(... act(W_1 x))), post: none, + x, or x + LayerNorm(.) | [rK, K], ..., [V, rK] |
| gated | W_1 (silu(W_0 x) * (W_2 x)), SwiGLU as in LaCT | [rK, K], [V, rK], [rK, K] |
"""

import abc
import dataclasses
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.nn.feed_forward import ACTIVATIONS
from jattn.ops.fast_weights.dual import Product, Weights
from jattn.typing import Array, Float, Key, Shape

Slow = dict[str, Array]
POSTS = ('none', 'residual', 'residual_norm')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
    """The base of all memories' architectures.

    Attributes:
        is_linear: whether the memory is one plain matrix.
        starts_at_zero: whether it can learn from zero weights; deep memories cannot (all gradients are products).
    """

    is_linear: ClassVar[bool] = False
    starts_at_zero: ClassVar[bool] = False

    @abc.abstractmethod
    def shapes(self, keys: int, values: int) -> tuple[Shape, ...]:
        """The shapes of a head's weights."""

    @abc.abstractmethod
    def forward(self, product: Product, x: Float[Array, 'C K'], slow: Slow) -> Float[Array, 'C V']:
        """The predictions for rows x."""

    def init(self, key: Key, shapes: tuple[Shape, ...], heads: int) -> Weights:
        """Initial weights [H, ...], learned by the outer loop; the last column of a weight with a bias is 0."""
        keys = jax.random.split(key, len(shapes))
        return tuple(self._init(k, (heads, *shape)) for k, shape in zip(keys, shapes))

    def slow(self, values: int) -> dict[str, tuple[Shape, float]]:
        """name -> (shape, initial value) of a head's slow parameters."""
        del values
        return {}

    def check(self, keys: int, values: int) -> None:
        """Raises ValueError where the channels do not fit; by default they always do."""
        del keys, values

    def _init(self, key: Key, shape: Shape) -> Array:
        """Normal with variance 1 / inputs."""
        return jax.random.normal(key, shape, jnp.float32) / math.sqrt(shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix(Architecture):
    """W x: linear attention, delta rules, Titans' linear memory. Starts at zero, where it can learn at once."""

    is_linear: ClassVar[bool] = True
    starts_at_zero: ClassVar[bool] = True

    def shapes(self, keys: int, values: int) -> tuple[Shape, ...]:
        return ((values, keys),)

    def forward(self, product: Product, x: Float[Array, 'C K'], slow: Slow) -> Float[Array, 'C V']:
        return product(0, x)

    def _init(self, key: Key, shape: Shape) -> Array:
        return jnp.zeros(shape, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector(Architecture):
    """w * x, element by element: a diagonal recurrence of constant size K."""

    starts_at_zero: ClassVar[bool] = True

    def shapes(self, keys: int, values: int) -> tuple[Shape, ...]:
        return ((keys,),)

    def forward(self, product: Product, x: Float[Array, 'C K'], slow: Slow) -> Float[Array, 'C V']:
        return product(0, x)

    def check(self, keys: int, values: int) -> None:
        _equal('vector', keys, values)

    def _init(self, key: Key, shape: Shape) -> Array:
        return jnp.zeros(shape, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP(Architecture):
    """A multi-layer perceptron, one a head: TTT, Titans, Moneta, Yaad, Memora.

    Attributes:
        depth: layers; 1 is a matrix with a residual and a norm (TTT-Linear).
        expansion: r, hidden units over key channels.
        activation: of the hidden units.
        post: 'none', 'residual' (+ x) or 'residual_norm' (x + LayerNorm(.), its scale and shift slow).
        use_bias: biases of the weights.
        init_std: of the initial weights; None: 1 / sqrt(inputs).
        epsilon: of the norm; a small one multiplies the inner step where the output is small.

    >>> MLP(depth=2, expansion=4).shapes(keys=8, values=8)
    ((32, 8), (8, 32))
    """

    depth: int = 2
    expansion: float = 4.0
    activation: str = 'gelu'
    post: str = 'residual_norm'
    use_bias: bool = False
    init_std: float | None = None
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f'architecture.depth={self.depth} must be at least 1')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'architecture.activation={self.activation!r} must be one of {sorted(ACTIVATIONS)}')
        if self.post not in POSTS:
            raise ValueError(f'architecture.post={self.post!r} must be one of {", ".join(POSTS)}')
        if self.expansion <= 0:
            raise ValueError(f'architecture.expansion={self.expansion} must be positive')

    def shapes(self, keys: int, values: int) -> tuple[Shape, ...]:
        sizes = [keys, *[round(self.expansion * keys)] * (self.depth - 1), values]
        return tuple((out, inputs + self.use_bias) for inputs, out in itertools.pairwise(sizes))

    def forward(self, product: Product, x: Float[Array, 'C K'], slow: Slow) -> Float[Array, 'C V']:
        act, h = ACTIVATIONS[self.activation], x
        for layer in range(self.depth):
            h = product(layer, act(h) if layer else h)
        if self.post == 'none':
            return h
        return x + (self._norm(h, slow) if self.post == 'residual_norm' else h)

    def slow(self, values: int) -> dict[str, tuple[Shape, float]]:
        return {'norm_scale': ((values,), 1.0), 'norm_shift': ((values,), 0.0)} if self.post == 'residual_norm' else {}

    def check(self, keys: int, values: int) -> None:
        if self.post != 'none':
            _equal(f"mlp with post='{self.post}'", keys, values)

    def _norm(self, h: Array, slow: Slow) -> Array:
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        h = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        return h * slow['norm_scale'][None] + slow['norm_shift'][None]

    def _init(self, key: Key, shape: Shape) -> Array:
        std = self.init_std or 1 / math.sqrt(shape[-1] - self.use_bias)
        weights = std * jax.random.normal(key, shape, jnp.float32)
        return weights.at[..., -1].set(0) if self.use_bias else weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated(Architecture):
    """W_1 (silu(W_0 x) * (W_2 x)): the SwiGLU memory of LaCT (Zhang et al. 2025).

    Attributes:
        expansion: r, hidden units over key channels.
    """

    expansion: float = 2.0

    def __post_init__(self) -> None:
        if self.expansion <= 0:
            raise ValueError(f'architecture.expansion={self.expansion} must be positive')

    def shapes(self, keys: int, values: int) -> tuple[Shape, ...]:
        hidden = round(self.expansion * keys)
        return (hidden, keys), (values, hidden), (hidden, keys)

    def forward(self, product: Product, x: Float[Array, 'C K'], slow: Slow) -> Float[Array, 'C V']:
        return product(1, jax.nn.silu(product(0, x)) * product(2, x))


def _equal(kind: str, keys: int, values: int) -> None:
    if keys != values:
        raise ValueError(f'architecture {kind} needs as many key as value channels, not K={keys}, V={values}')


ARCHITECTURES: dict[str, Architecture] = {
    'vector': Vector(),
    'matrix': Matrix(),
    'mlp': MLP(),
    'gated': Gated(),
}
