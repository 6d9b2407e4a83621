"""The second choice, the attentional bias: what the memory minimises, token by token, with e = prediction - value.

| name | loss l(e) | gradient dl/de |
| --- | --- | --- |
| dot | - <prediction, value> | - value |
| l2 | 1/2 e.e | e |
| erasing | as l2, the held part read and removed along keys of its own | - value, beside what is removed |
| lp | sum abs(e)^p | p Sign(e) abs(e)^(p-1) |
| l1 | sum abs(e) | Sign(e) |
| huber, vector | H_delta(norm(e)) | e min(1, delta / norm(e)) |
| huber, coordinate | sum H_delta(e_j) | clip(e, -delta, delta) |
| huber, mixture | 1/2 e.e where norm(e) <= delta, else delta (sum abs(e) - delta/2) | e, else delta Sign(e) |
| robust | max over norm(s) <= D of 1/2 norm(e - s)^2 = 1/2 (norm(e) + D)^2 | e + D e / norm(e) |
| robust, box | max over abs(s_j) <= D of 1/2 norm(e - s)^2 = 1/2 sum (abs(e_j) + D)^2 | e + D Sign(e) |

H_delta(a) = 1/2 a^2 up to delta, delta (abs(a) - delta/2) beyond (Behrouz et al. 2025, Miras: Moneta takes l_p, Yaad
the Huber mixture). Squares carry 1/2 everywhere, which settles what a step means and where delta sits: it is compared
with the error in output space. abs and Sign of l_p and l_1 come in three forms: `smooth`, the gradient of
sum (e^2 + epsilon)^(p/2); `tanh`, the printed one, Sign(e) ~ tanh(slope e) and abs(e) ~ sqrt(e^2 + epsilon); `exact`.

Functions are for the rows of one head and keep their dtype, float32 or float64. Gradients are closed forms that the
outer loop differentiates once more, so all are finite, and have finite derivatives, at e = 0 and at very large e.
"""

import abc
import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from jattn.memories.norms import row_direction, row_norm
from jattn.typing import Array, Float

FORMS = ('smooth', 'tanh', 'exact')
HUBER_FORMS = ('vector', 'coordinate', 'mixture')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bias(abc.ABC):
    """The base of all inner losses.

    Attributes:
        solvable: whether the gradient is linear in the prediction, so that a matrix memory has an exact chunk form.
        is_constant: whether the gradient does not depend on the prediction at all.
        erases: whether every token also brings a pair of keys (a, b): what a reads is removed along b.
        needs_threshold: whether every token brings its delta > 0.
        is_exact: whether `gradient` is the gradient of `loss`, not a printed stand-in for it.
    """

    solvable: ClassVar[bool] = False
    is_constant: ClassVar[bool] = False
    erases: ClassVar[bool] = False
    needs_threshold: ClassVar[bool] = False
    is_exact: ClassVar[bool] = True

    @abc.abstractmethod
    def loss(
        self, prediction: Float[Array, 'C V'], value: Float[Array, 'C V'], threshold: Float[Array, 'C'] | None = None
    ) -> Float[Array, 'C']:
        """The loss of every row."""

    @abc.abstractmethod
    def gradient(
        self, prediction: Float[Array, 'C V'], value: Float[Array, 'C V'], threshold: Float[Array, 'C'] | None = None
    ) -> Float[Array, 'C V']:
        """Its gradient by the prediction, row by row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot(Bias):
    """The dot product: linear attention and its decays. The gradient does not depend on the prediction.

    >>> Dot().gradient(jnp.array([[5.0]]), jnp.array([[3.0]])).tolist()
    [[-3.0]]
    """

    solvable: ClassVar[bool] = True
    is_constant: ClassVar[bool] = True

    def loss(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        return -jnp.sum(prediction * value, axis=-1)

    def gradient(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        return -value


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2(Bias):
    """Half the squared error: delta rules, TTT, Titans, Memora.

    >>> L2().gradient(jnp.array([[5.0]]), jnp.array([[3.0]])).tolist()
    [[2.0]]
    """

    solvable: ClassVar[bool] = True

    def loss(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        return jnp.sum(jnp.square(prediction - value), axis=-1) / 2

    def gradient(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        return prediction - value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasing(Dot):
    """l2 with keys of its own for what it erases: - <W k, v> + <stop(W a), W b>, a and b from the token.

    The gradient is (W a) b^T - v k^T; with a = b = k it is that of l2. RWKV-7 and Comba choose a and b in their layer.
    This file has the second term, the path adds the first.
    """

    erases: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Power(Bias):
    """What `LP` and `L1` share: sum abs(e)^p, with abs and Sign in one of three forms.

    Attributes:
        form: 'smooth', 'tanh' or 'exact'; see the top of the file.
        epsilon: of sqrt(e^2 + epsilon) in the first two; for p < 2 the curvature at 0 grows as it shrinks.
        slope: of tanh(slope e); at 100 its error beyond abs(e) = .05 is below 1e-4, at 10 it is .5 for p = 1.
    """

    form: str = 'smooth'
    epsilon: float = 1e-6
    slope: float = 100.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f'bias.form={self.form!r} must be one of {", ".join(FORMS)}')
        _positive(epsilon=self.epsilon, slope=self.slope)

    @property
    def is_exact(self) -> bool:
        return self.form != 'tanh'

    def loss(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        e = prediction - value
        inside = self._clip(e)
        # Beyond the clip a straight line goes on, so that the clipped gradient is still a gradient.
        return jnp.sum(self._magnitude(inside) ** self._power + self._slope(inside) * (e - inside), axis=-1)

    def gradient(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        return self._slope(self._clip(prediction - value))

    @property
    @abc.abstractmethod
    def _power(self) -> float:
        """p."""

    def _clip(self, e: Array) -> Array:
        return e

    def _magnitude(self, e: Array) -> Array:
        """abs(e), or its smooth form."""
        return jnp.abs(e) if self.form == 'exact' else _smooth_abs(e, self.epsilon)

    def _slope(self, e: Array) -> Array:
        """p Sign(e) abs(e)^(p-1)."""
        p = self._power
        if self.form == 'exact':
            return p * jnp.sign(e) * jnp.where(e == 0, 1, jnp.abs(e)) ** (p - 1)
        size = _smooth_abs(e, self.epsilon)
        return p * (jnp.tanh(self.slope * e) if self.form == 'tanh' else e / size) * size ** (p - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LP(Power):
    """The sum of abs(e)^p (Moneta: p = 3); p = 2 is twice `L2`.

    Attributes:
        p: at least 1.
        clip: with p > 2 the gradient grows faster than the error, and the inner loop would explode: beyond this
            abs(e) it stays as it is. None: no clip.

    >>> LP(p=3.0, form='exact').gradient(jnp.array([[2.0, -9.0]]), jnp.zeros((1, 2))).tolist()
    [[12.0, -27.0]]
    """

    p: float = 3.0
    clip: float | None = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.p < math.inf:
            raise ValueError(f'bias.p={self.p} must be finite and at least 1')
        if self.clip is not None:
            _positive(clip=self.clip)

    @property
    def _power(self) -> float:
        return self.p

    def _clip(self, e: Array) -> Array:
        return e if self.clip is None or self.p <= 2 else jnp.clip(e, -self.clip, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1(Power):
    """The sum of abs(e): only the signs of the errors are stored, whatever their size.

    >>> L1(form='exact').gradient(jnp.array([[2.0, -9.0, 0.0]]), jnp.zeros((1, 3))).tolist()
    [[1.0, -1.0, 0.0]]
    """

    @property
    def _power(self) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Huber(Bias):
    """Half the squared error up to a threshold, linear beyond: an outlier moves the memory by delta at most (Yaad).

    Attributes:
        form: 'vector' bounds the norm of a row's error and is continuous; 'coordinate' bounds every coordinate;
            'mixture' is Yaad as printed: it switches the whole row, and jumps from norm delta to delta sqrt(V).
        threshold: delta of all tokens; None: every token brings its own.

    >>> [round(x, 3) for x in Huber(threshold=1.0).gradient(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)))[0].tolist()]
    [0.6, 0.8]
    """

    form: str = 'vector'
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.form not in HUBER_FORMS:
            raise ValueError(f'bias.form={self.form!r} must be one of {", ".join(HUBER_FORMS)}')
        if self.threshold is not None:
            _positive(threshold=self.threshold)

    @property
    def needs_threshold(self) -> bool:
        return self.threshold is None

    def loss(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        e, delta = prediction - value, self._delta(prediction, threshold)
        if self.form == 'vector':
            return _huber(row_norm(e)[:, 0], delta)
        if self.form == 'coordinate':
            return jnp.sum(_huber(jnp.abs(e), delta[:, None]), axis=-1)
        is_far, bound = self._switch(e, delta)
        far = bound * (jnp.sum(jnp.abs(e), axis=-1) - bound / 2)
        return jnp.where(is_far, far, jnp.sum(jnp.square(e), axis=-1) / 2)

    def gradient(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        e, delta = prediction - value, self._delta(prediction, threshold)
        if self.form == 'coordinate':
            return jnp.clip(e, -delta[:, None], delta[:, None])
        is_far, bound = self._switch(e, delta)
        towards = jnp.sign(e) if self.form == 'mixture' else row_direction(e)
        return jnp.where(is_far[:, None], bound[:, None] * towards, e)

    def _delta(self, like: Array, threshold: Array | None) -> Float[Array, 'C']:
        if self.threshold is not None:
            return jnp.full(like.shape[0], self.threshold, like.dtype)
        if threshold is None:
            raise ValueError('bias.threshold=None: every token must bring its threshold [C]')
        return threshold.astype(like.dtype)

    def _switch(self, e: Array, delta: Float[Array, 'C']) -> tuple[Array, Array]:
        """Which rows are beyond delta, and delta there; 0 elsewhere, where it may be infinite."""
        is_far = row_norm(e)[:, 0] > delta
        return is_far, jnp.where(is_far, delta, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robust(Bias):
    """Half the squared error at the worst shift of the value.

    Attributes:
        radius: D, of the shifts.
        box: shifts bounded coordinate by coordinate, in place of their norm.

    >>> Robust(radius=1.0, box=True).gradient(jnp.array([[3.0, -4.0]]), jnp.zeros((1, 2))).tolist()
    [[4.0, -5.0]]
    """

    radius: float = 0.1
    box: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.radius < math.inf:
            raise ValueError(f'bias.radius={self.radius} must be finite and at least 0')

    def loss(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        e = prediction - value
        if self.box:
            return jnp.sum(jnp.square(jnp.abs(e) + self.radius), axis=-1) / 2
        return jnp.square(row_norm(e)[:, 0] + self.radius) / 2

    def gradient(self, prediction: Array, value: Array, threshold: Array | None = None) -> Array:
        e = prediction - value
        return e + self.radius * (jnp.sign(e) if self.box else row_direction(e))


def _smooth_abs(e: Array, epsilon: float) -> Array:
    """sqrt(e^2 + epsilon), whose square does not overflow."""
    unit = lax.stop_gradient(jnp.maximum(jnp.abs(e), 1))
    return unit * jnp.sqrt(jnp.square(e / unit) + jnp.square(math.sqrt(epsilon) / unit))


def _huber(size: Array, delta: Array) -> Array:
    """H_delta of sizes >= 0, in a form that no infinite delta spoils."""
    inner = jnp.minimum(size, delta)
    return inner * (size - inner / 2)


def _positive(**fields: float) -> None:
    for name, value in fields.items():
        if not value > 0:
            raise ValueError(f'bias.{name}={value} must be positive')


BIASES: dict[str, Bias] = {
    'dot': Dot(),
    'l2': L2(),
    'erasing': Erasing(),
    'lp': LP(),
    'l1': L1(),
    'huber': Huber(),
    'robust': Robust(),
}
