"""The data-dependent gates of a memory: step, decay, momentum, threshold, window; each made from the token alone.

    z_t = W x_t + bias          (with `rank`, W = W_up W_down)

| kind | value | as a decay or momentum: its log |
| --- | --- | --- |
| constant | bound | log bound |
| sigmoid | bound sigmoid(z) | log bound + log sigmoid(z) / temperature |
| softplus | softplus(z), at most bound | |
| time_step | dt = softplus(z), at first log-uniform in [.001, .1] | - exp(A_log) dt, A a head (Mamba-2) |
| bounded | | - bound sigmoid(z) (RWKV-7) |
| complement | | log(lower + (1 - lower) sigmoid(z)) (HGRN2; its keys are 1 - the decay) |
| retnet | | log(1 - 2^(-5 - h)) |
| lightning | | - 2^(-8 (h + 1) / H) |

Everything is float32 at least and decays stay logs from end to end: a product of many is a sum, and nothing underflows.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.nn.linear import Linear
from jattn.nn.time_step import time_step_bias
from jattn.typing import Array, Float, Key, Shape, at_least_float32

VALUE_KINDS = ('constant', 'sigmoid', 'softplus', 'time_step')
LOG_KINDS = ('constant', 'sigmoid', 'time_step', 'bounded', 'complement', 'retnet', 'lightning')
FIXED = ('constant', 'retnet', 'lightning')  # no parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate.

    Attributes:
        kind: see the table above.
        per: 'head' (one number) or 'channel' (one a channel: value channels for a step, key channels for a decay).
        rank: of the projection; None: full.
        bias: the initial z.
        bound: the largest value; None: the stable one, min(1, 4 / chunk): a chunk's summed step must stay below 2.
        over_keys: the bound is divided by the key channels of a head (TTT).
        temperature: of a sigmoid decay (GLA takes 16).
        lower: the least decay of `complement`.
        decay_range: A of `time_step` is drawn uniformly from it.
    """

    kind: str = 'sigmoid'
    per: str = 'head'
    rank: int | None = None
    bias: float = 0.0
    bound: float | None = 1.0
    over_keys: bool = False
    temperature: float = 1.0
    lower: float = 0.0
    decay_range: tuple[float, float] = (1.0, 16.0)

    def __post_init__(self) -> None:
        kinds = tuple(dict.fromkeys(VALUE_KINDS + LOG_KINDS))
        if self.kind not in kinds:
            raise ValueError(f'gate.kind={self.kind!r} must be one of {", ".join(kinds)}')
        if self.per not in ('head', 'channel'):
            raise ValueError(f"gate.per={self.per!r} must be 'head' or 'channel'")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f'gate.rank={self.rank} must be at least 1, or None for a full projection')
        if not 0 <= self.lower < 1:
            raise ValueError(f'gate.lower={self.lower} must be at least 0 and below 1')
        if self.bound is not None and self.bound <= 0:
            raise ValueError(f'gate.bound={self.bound} must be positive, or None for the stable one')


class GateModule(nn.Module):
    """A gate's parameters; `value(x)` and `log(x)` are [B, T, H], or [B, T, H, N] per channel.

    Attributes:
        gate: its config.
        heads: H.
        channels: N, of a gate per channel.
        bound: what gate.bound=None stands for.
        keys: K, of `over_keys`.
    """

    gate: Gate
    heads: int
    channels: int
    bound: float = 1.0
    keys: int = 1

    @property
    def features(self) -> Shape:
        return (self.heads, self.channels) if self.gate.per == 'channel' else (self.heads,)

    @property
    def limit(self) -> float:
        """The bound in force."""
        bound = self.bound if self.gate.bound is None else self.gate.bound
        return bound / self.keys if self.gate.over_keys else bound

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], as_log: bool) -> Array:
        kind, legal = self.gate.kind, LOG_KINDS if as_log else VALUE_KINDS
        if kind not in legal:
            raise ValueError(f'gate.kind={kind!r} has no {"log" if as_log else "value"}; there are: {", ".join(legal)}')
        if kind in FIXED:
            return self._fixed(x, as_log)
        z = self._logits(x)
        if kind == 'time_step':
            dt = jax.nn.softplus(z)
            return -jnp.exp(self._decay_rate(z)) * dt if as_log else dt
        if kind == 'softplus':
            return jnp.minimum(jax.nn.softplus(z), self.limit)
        if kind == 'bounded':
            return -self.limit * jax.nn.sigmoid(z)
        if kind == 'complement':
            return _at_least(jax.nn.log_sigmoid(z), self.gate.lower)
        if as_log:
            return math.log(self.limit) + jax.nn.log_sigmoid(z) / self.gate.temperature
        return self.limit * jax.nn.sigmoid(z)

    def _fixed(self, x: Array, as_log: bool) -> Array:
        heads = jnp.arange(self.heads, dtype=at_least_float32(x))
        value = {
            'constant': jnp.full_like(heads, math.log(self.limit) if as_log else self.limit),
            'retnet': jnp.log1p(-jnp.exp2(-5 - heads)),
            'lightning': -jnp.exp2(-8 * (heads + 1) / self.heads),
        }[self.gate.kind]
        if self.gate.per == 'channel':
            value = value[:, None]
        return jnp.broadcast_to(value[None, None], (*x.shape[:2], *self.features))

    def _logits(self, x: Array) -> Array:
        axes = ('heads', 'head')[: len(self.features)]
        if self.gate.rank is None:
            z = Linear(self.features, ('embed', *axes), name='proj')(x)
        else:
            low = Linear((self.gate.rank,), ('embed', 'rank'), name='down_proj')(x)
            z = Linear(self.features, ('rank', *axes), name='up_proj')(low)
        init = time_step_bias if self.gate.kind == 'time_step' else nn.initializers.constant(self.gate.bias)
        bias = self.param('bias', nn.with_logical_partitioning(init, axes), self.features, jnp.float32)
        return z.astype(at_least_float32(z)) + bias[None, None]

    def _decay_rate(self, z: Array) -> Array:
        """A_log, one a head, shaped as z."""

        def init(key: Key, shape: Shape, dtype: jnp.dtype) -> Array:
            low, high = self.gate.decay_range
            return jnp.log(jnp.maximum(jax.random.uniform(key, shape, dtype, low, high), 1e-4))

        rate = self.param('decay_rate', nn.with_logical_partitioning(init, ('heads',)), (self.heads,), jnp.float32)
        return rate.reshape(1, 1, -1, *[1] * (z.ndim - 3))


def _at_least(log_decay: Array, lower: float) -> Array:
    """log(lower + (1 - lower) exp(log_decay)), by logs alone: the decay itself may underflow."""
    return jnp.logaddexp(math.log(lower), math.log1p(-lower) + log_decay) if lower else log_decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """The gates of a memory; None: it has no such gate.

    Attributes:
        step: theta, the size of a step (the write strength).
        decay: a, what is kept of the weights.
        momentum: m, what is kept of the momentum.
        threshold: delta, where a robust loss bends.
        window: gamma, how much a token counts in the steps of the tokens after it; None: 1.
    """

    step: Gate = Gate()
    decay: Gate | None = None
    momentum: Gate | None = None
    threshold: Gate | None = None
    window: Gate | None = None


GATES: dict[str, Gate] = {
    'one': Gate(kind='constant'),
    'sigmoid': Gate(),
    'keep': Gate(bias=4.0),
    'step': Gate(bound=None),
    'momentum': Gate(bound=0.95),
    'threshold': Gate(kind='softplus', bias=0.5413, bound=1e4),
    'time_step': Gate(kind='time_step'),
    'gla': Gate(per='channel', rank=16, temperature=16.0),
    'kimi': Gate(kind='time_step', per='channel', rank=32),
    'rwkv7': Gate(kind='bounded', per='channel', rank=32, bound=0.6065),
    'hgrn2': Gate(kind='complement', per='channel'),
    'retnet': Gate(kind='retnet'),
    'lightning': Gate(kind='lightning'),
}
