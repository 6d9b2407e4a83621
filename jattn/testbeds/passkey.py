"""Passkey: a value of several digits is hidden in a haystack of any length and must be given when its key is asked for.

    noise ... noise  MARK key d_1 ... d_N  noise ... noise  MARK key d_1 ... d_(N-1)     targets: d_1 ... d_N at the end

The question is teacher-forced: the last N positions are scored, the key's and those of all digits but the last. A
synthetic form of RULER's single needle (Hsieh et al. 2024) and, with several `needles` of different keys of which one
is asked for, of its multi-key needle.

    tokens      0 MARK | 1..10 the digits 0..9 | the keys | the noise
    needle i    begins behind round(depth_i (T - room)) tokens of noise, depth_i uniform in 0..1 unless it is given;
                room is what needles and question take; needles keep the order of their depths and never overlap

The haystack is a function of the place alone: 'uniform' draws each token from the noise tokens, in blocks of 256 whose
key is folded from the block's number; 'repeat' says all noise tokens in order, again and again. So `stream_chunk` gives
any piece of a stream of millions of tokens in time and memory of the piece, and a row of `rows_at` is the pieces of
its stream joined. Depths are float32: places are exact to one token up to streams of 2^23.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import certain_logits, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Int32, Key

MARK, DIGITS = 0, 10
FIRST_DIGIT = MARK + 1
FIRST_KEY = FIRST_DIGIT + DIGITS
HAYSTACKS = ('uniform', 'repeat')
BLOCK = 256


@struct.dataclass
class Needles:
    """What a stream hides; the first needle is the one that is asked for.

    Attributes:
        names: [N] int32, the tokens of the keys, all different.
        values: [N, digits] int32, the tokens of the digits.
        depths: [N] float32 in 0..1, the share of the noise that stands before each.
    """

    names: Int32[Array, 'N']
    values: Int32[Array, 'N digits']
    depths: Float[Array, 'N']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey(Task):
    """A needle in a haystack.

    Attributes:
        tokens: T of a row, needles and question included.
        digits: N, of a value; each is uniform over ten.
        keys: how many keys there are.
        needles: how many are hidden, of different keys; one is asked for.
        noise: how many noise tokens there are.
        haystack: 'uniform' or 'repeat'.

    >>> batch = Passkey(tokens=12, digits=2, keys=3, noise=5).sample(jax.random.key(0), 2)
    >>> batch.inputs.shape, batch.mask[0].tolist()
    ((2, 12), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    """

    kind: ClassVar[str] = 'discrete'

    tokens: int = 256
    digits: int = 4
    keys: int = 21
    needles: int = 1
    noise: int = 32
    haystack: str = 'uniform'

    def __post_init__(self) -> None:
        for name in ('digits', 'needles', 'noise'):
            if getattr(self, name) < 1:
                raise ValueError(f'Passkey: {name}={getattr(self, name)} must be at least 1')
        if self.needles > self.keys:
            raise ValueError(f'Passkey: needles={self.needles} need as many different keys, but keys={self.keys}')
        if self.haystack not in HAYSTACKS:
            raise ValueError(f'Passkey: haystack={self.haystack!r} must be one of {", ".join(HAYSTACKS)}')
        self.check_length('tokens', self.tokens)

    @property
    def input_size(self) -> int:
        return FIRST_KEY + self.keys + self.noise

    @property
    def output_size(self) -> int:
        return self.input_size

    @property
    def room(self) -> int:
        """The tokens that needles and question take."""
        return self.needles * (self.digits + 2) + self.digits + 1

    def check_length(self, name: str, tokens: int) -> None:
        """Raises a ValueError where needles and question do not fit in."""
        if tokens < self.room:
            raise ValueError(
                f'Passkey: {name}={tokens} must be at least {self.room}, '
                f'the room of needles={self.needles} and the question with digits={self.digits}'
            )

    def sample(self, key: Key, batch: int) -> Batch:
        return self.rows_at(key, batch)

    def rows_at(
        self, key: Key, batch: int, depth: float | Float[Array, 'B'] | None = None, tokens: int | None = None
    ) -> Batch:
        """Rows with the needle at a depth and of a length; row i is the stream of `jax.random.split(key, batch)[i]`.

        Args:
            key: of the rows.
            batch: how many.
            depth: of the needle that is asked for, 0 (the start) to 1 (just before the question); None: uniform.
            tokens: T; None: the task's.

        >>> early = Passkey().rows_at(jax.random.key(0), 2, depth=0.0, tokens=64)
        >>> early.inputs.shape, early.inputs[:, 0].tolist()
        ((2, 64), [0, 0])
        """
        tokens = self.tokens if tokens is None else tokens
        self.check_length('tokens', tokens)
        keys = jax.random.split(key, batch)
        if depth is not None:
            depth = jnp.broadcast_to(jnp.asarray(depth, jnp.float32), (batch,))
        hidden = jax.vmap(lambda k, d: draw_needles(self, k, d), in_axes=(0, None if depth is None else 0))(keys, depth)
        inputs = jax.vmap(lambda k, d: stream_chunk(self, k, 0, tokens, d, tokens))(keys, hidden.depths[:, 0])
        front = (tokens - self.digits, 0)
        return Batch(
            inputs=inputs,
            targets=jnp.pad(hidden.values[:, 0], ((0, 0), front)),
            mask=jnp.pad(jnp.ones((batch, self.digits)), ((0, 0), front)),
            meta={'depth': hidden.depths[:, 0]},
        )

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the digits, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss and accuracy of a digit, sequence_accuracy of the whole value."""
        return token_metrics(outputs, batch)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the value behind the first MARK with the key that the question names."""
        inputs = batch.inputs
        asked = inputs[:, -self.digits]
        is_needle = (inputs[:, :-1] == MARK) & (inputs[:, 1:] == asked[:, None])
        start = jnp.argmax(is_needle, axis=1)
        places = start[:, None] + 2 + jnp.arange(self.digits)[None, :]
        value = jnp.take_along_axis(inputs, places, axis=1)
        answers = jnp.pad(value, ((0, 0), (inputs.shape[1] - self.digits, 0)))
        return {'look_up': certain_logits(answers, self.output_size)}

    def facts(self) -> dict[str, float]:
        """Guessing digits, and (several needles) guessing a needle, by digit and by whole value; look-up is right."""
        needle, value = 1 / self.needles, DIGITS**-self.digits
        facts = {
            'look_up': 0.0,
            'chance_loss': math.log(DIGITS),
            'chance_accuracy': 1 / DIGITS,
            'chance_sequence_accuracy': value,
        }
        if self.needles > 1:
            facts['any_needle_accuracy'] = needle + (1 - needle) / DIGITS
            facts['any_needle_sequence_accuracy'] = needle + (1 - needle) * value
        return facts

    def tiny(self) -> 'Passkey':
        return dataclasses.replace(self, tokens=32, digits=2, keys=4, needles=min(self.needles, 2), noise=8)


def draw_needles(task: Passkey, key: Key, depth: float | Float[Array, ''] | None = None) -> Needles:
    """The needles of a stream.

    Args:
        task: their number and sizes.
        key: of the stream, as in `stream_chunk`.
        depth: of the first, the one that is asked for; None: uniform, as that of the others.

    >>> needles = draw_needles(Passkey(needles=3), jax.random.key(0), depth=0.5)
    >>> needles.names.shape, needles.values.shape, float(needles.depths[0])
    ((3,), (3, 4), 0.5)
    """
    name_key, value_key, depth_key, _ = jax.random.split(key, 4)
    names = FIRST_KEY + choose(name_key, 1, task.needles, task.keys)[0]
    values = jax.random.randint(value_key, (task.needles, task.digits), FIRST_DIGIT, FIRST_KEY, jnp.int32)
    depths = jax.random.uniform(depth_key, (task.needles,))
    return Needles(names, values, depths if depth is None else depths.at[0].set(depth))


def stream_chunk(
    task: Passkey,
    key: Key,
    start: int | Int32[Array, ''],
    length: int,
    depth: float | Float[Array, ''] | None,
    total: int | Int32[Array, ''],
) -> Int32[Array, 'T']:
    """Tokens `start` .. `start + length - 1` of a stream of `total` tokens, in time and memory of the chunk.

    Args:
        task: the sizes; its `tokens` plays no part.
        key: of the stream.
        start: where the chunk begins.
        length: T, of the chunk; static.
        depth: of the needle that is asked for; None: drawn from the key.
        total: tokens of the stream; the last digits + 1 are the question. The answer is
            `draw_needles(task, key).values[0]`.

    >>> task, key = Passkey(), jax.random.key(3)
    >>> whole = stream_chunk(task, key, 0, 600, 0.5, 600)
    >>> jnp.array_equal(whole[590:], stream_chunk(task, key, 590, 10, 0.5, 600)).item()
    True
    """
    if isinstance(total, int):
        task.check_length('total', total)
    hidden = draw_needles(task, key, depth)
    at = start + jnp.arange(length, dtype=jnp.int32)
    width, question_tokens = task.digits + 2, task.digits + 1

    before = jnp.round(hidden.depths * (total - task.room)).astype(jnp.int32)
    earlier = before[:, None] > before[None, :]
    tied = (before[:, None] == before[None, :]) & jnp.tri(task.needles, k=-1, dtype=bool)
    starts = before + width * jnp.sum(earlier | tied, axis=1)

    marks = jnp.full((task.needles, 1), MARK, jnp.int32)
    needles = jnp.concatenate([marks, hidden.names[:, None], hidden.values], axis=1)
    offset = at[:, None] - starts[None, :]
    inside = (offset >= 0) & (offset < width)
    text = jnp.take_along_axis(needles.T, jnp.clip(offset, 0, width - 1), axis=0)
    tokens = jnp.where(jnp.any(inside, axis=1), jnp.sum(inside * text, axis=1, dtype=jnp.int32), _noise(task, key, at))

    offset = at - (total - question_tokens)
    return jnp.where(offset >= 0, needles[0, jnp.clip(offset, 0, question_tokens - 1)], tokens)


def _noise(task: Passkey, key: Key, at: Int32[Array, 'T']) -> Int32[Array, 'T']:
    """The haystack at consecutive places."""
    first = FIRST_KEY + task.keys
    if task.haystack == 'repeat':
        return first + at % task.noise
    noise_key = jax.random.split(key, 4)[3]
    blocks = at[0] // BLOCK + jnp.arange(len(at) // BLOCK + 2)
    draw = lambda block: jax.random.randint(jax.random.fold_in(noise_key, block), (BLOCK,), 0, task.noise, jnp.int32)
    drawn = jax.vmap(draw)(blocks).reshape(-1)
    return first + jax.lax.dynamic_slice_in_dim(drawn, at[0] % BLOCK, len(at))
