"""Stacked recall: key and value in one token, then the keys alone; the unit test of an associative memory.

    inputs = (k_1, v_1) ... (k_K, v_K)  (k_7, v'_7) ...  (k_3, 0) (k_1, 0) ...      target at (k_j, 0): the last v_j

The continuous form of multi-query recall (Zoology's "stacked"): nothing has to be shifted from one token to the next,
so that one layer whose keys and values are the two halves of its input is enough, and what is measured is the memory.
Keys and values are new in every row: values are random unit vectors of F features, keys too, or different unit axes
with keys='one_hot', which needs K <= F. Each of `overwrites` keys is shown once more, behind all pairs, with another
value; the answer is the last one. Every key is asked once, in random order.

The loss is the squared error of the value (what a memory minimises); `accuracy` takes the nearest of the values that
the row shows, old ones included. Two memories of one matrix bound the scale:

    sum      S += v k^T                     interference: squared error (K - 1)/F for random keys without overwrites
    delta    S += (v - S k) k^T             exact for one-hot keys, overwrites included; a step is 1

and the look-up is the delta rule with a one-hot code in the place of every key, exact for any keys and any K. The sum's
error passes that of saying zero at K = F + 1. With random keys the plain delta rule is exact for the last pair alone:
it wears away the early ones, and its accuracy of the nearest value is below the sum's.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, squared_error
from jattn.testbeds.discrete import choose
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key

KEYS = ('random', 'one_hot')


def delta_memory(keys: Float[Array, 'B T K'], values: Float[Array, 'B T V']) -> Float[Array, 'B K V']:
    """The matrix after all pairs were written by the delta rule with step 1, which forgets what a key held before.

    >>> written = delta_memory(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]), jnp.array([[[3.0], [4.0]]]))
    >>> written[0].tolist()
    [[4.0], [0.0]]
    """

    def write(memory: Float[Array, 'B K V'], pair: tuple[Array, Array]) -> tuple[Array, None]:
        key, value = pair
        held = jnp.einsum('bkv,bk->bv', memory, key)
        return memory + key[:, :, None] * (value - held)[:, None, :], None

    start = jnp.zeros((len(keys), keys.shape[2], values.shape[2]), values.dtype)
    return jax.lax.scan(write, start, (jnp.swapaxes(keys, 0, 1), jnp.swapaxes(values, 0, 1)))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedRecall(Task):
    """Recall from joined keys and values.

    Attributes:
        dim: F, features of a key and of a value; an input has 2F.
        pairs: K, different keys; every one is asked.
        overwrites: how many of the keys get another value later.
        keys: 'random' unit vectors, or 'one_hot'.

    >>> task = StackedRecall(dim=2, pairs=2, keys='one_hot')
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0, :, :2].tolist(), batch.mask[0].tolist()
    ([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [0.0, 0.0, 1.0, 1.0])
    >>> StackedRecall(dim=16, pairs=33).facts()['sum']
    2.0
    """

    kind: ClassVar[str] = 'continuous'

    dim: int = 32
    pairs: int = 16
    overwrites: int = 0
    keys: str = 'random'

    def __post_init__(self) -> None:
        where = 'StackedRecall'
        if self.dim < 1 or self.pairs < 1:
            raise ValueError(f'{where}: dim={self.dim} and pairs={self.pairs} must be at least 1')
        if not 0 <= self.overwrites <= self.pairs:
            raise ValueError(f'{where}: overwrites={self.overwrites} must lie in 0..pairs = {self.pairs}')
        if self.keys not in KEYS:
            raise ValueError(f'{where}: keys={self.keys!r} must be one of {", ".join(KEYS)}')
        if self.keys == 'one_hot' and self.pairs > self.dim:
            raise ValueError(f'{where}: pairs={self.pairs} must be at most dim={self.dim} with one-hot keys')

    @property
    def input_size(self) -> int:
        return 2 * self.dim

    @property
    def output_size(self) -> int:
        return self.dim

    @property
    def context(self) -> int:
        """Tokens before the questions: the shown pairs."""
        return self.pairs + self.overwrites

    def sample(self, key: Key, batch: int) -> Batch:
        name_key, value_key, overwrite_key, order_key = jax.random.split(key, 4)
        if self.keys == 'one_hot':
            names = jax.nn.one_hot(choose(name_key, batch, self.pairs, self.dim), self.dim)
        else:
            names = _unit_vectors(name_key, (batch, self.pairs, self.dim))
        values = _unit_vectors(value_key, (batch, self.context, self.dim))
        again = choose(overwrite_key, batch, self.overwrites, self.pairs)
        asked = choose(order_key, batch, self.pairs, self.pairs)

        # The answer is the pair's own value, or the one of the later pair that overwrites it.
        hits = again[:, None, :] == asked[:, :, None]
        later = self.pairs + jnp.sum(hits * np.arange(self.overwrites)[None, None], axis=-1, dtype=jnp.int32)
        updated = jnp.any(hits, axis=-1)
        answers = jnp.where(updated, later, asked)
        which = jnp.concatenate([jnp.broadcast_to(jnp.arange(self.pairs), (batch, self.pairs)), again, asked], axis=1)
        shown = jnp.concatenate([values, jnp.zeros((batch, self.pairs, self.dim))], axis=1)
        targets = jnp.take_along_axis(values, answers[:, :, None], axis=1)
        return Batch(
            inputs=jnp.concatenate([jnp.take_along_axis(names, which[:, :, None], axis=1), shown], axis=-1),
            targets=self._at_questions(targets),
            mask=self._at_questions(jnp.ones((batch, self.pairs))),
            meta={'answers': answers, 'updated': updated.astype(jnp.float32)},
        )

    def _at_questions(self, x: Float[Array, 'B K *F']) -> Float[Array, 'B T *F']:
        return jnp.pad(x, ((0, 0), (self.context, 0), *[(0, 0)] * (x.ndim - 2)))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error of the asked values, summed over features."""
        return squared_error(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss; accuracy of the nearest shown value, sequence_accuracy; accuracy of overwritten and of other keys."""
        candidates = batch.inputs[:, : self.context, self.dim :]
        said = outputs[:, self.context :]
        # Unit vectors: the nearest has the largest product.
        nearest = jnp.argmax(jnp.einsum('btf,bnf->btn', said, candidates), axis=-1)
        right = (nearest == batch.meta['answers']).astype(jnp.float32)
        metrics = {
            'loss': self.loss(outputs, batch),
            'accuracy': Mean.of(right),
            'sequence_accuracy': Mean.of(jnp.min(right, axis=1)),
        }
        if self.overwrites:
            metrics['updated_accuracy'] = Mean.of(right, batch.meta['updated'])
            metrics['untouched_accuracy'] = Mean.of(right, 1 - batch.meta['updated'])
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Values, from the inputs alone: the look-up, the delta rule and the sum on the keys as they are, zero."""
        names, values = batch.inputs[..., : self.dim], batch.inputs[:, : self.context, self.dim :]
        shown, asked = names[:, : self.context], names[:, self.context :]
        same = jnp.all(names[:, :, None, :] == shown[:, None, :, :], axis=-1)
        codes = jax.nn.one_hot(jnp.argmax(same, axis=-1), self.context)
        memories = {
            'look_up': (delta_memory(codes[:, : self.context], values), codes[:, self.context :]),
            'delta_rule': (delta_memory(shown, values), asked),
            'sum': (jnp.einsum('bsk,bsv->bkv', shown, values), asked),
        }
        read = {name: jnp.einsum('bkv,btk->btv', memory, query) for name, (memory, query) in memories.items()}
        return {name: self._at_questions(said) for name, said in read.items()} | {'zero': jnp.zeros_like(batch.targets)}

    def facts(self) -> dict[str, float]:
        """Squared errors: of the look-up, of zero, of the sum (in the mean over rows); of the delta rule if exact."""
        updated = self.overwrites / self.pairs
        # A product of two random unit vectors has mean square 1/F, and each shown value has length 1; what else was
        # written with the asked key itself, its old value, is read in full.
        others = self.context - 1 - updated
        interference = others / self.dim if self.keys == 'random' else 0.0
        facts = {
            'look_up': 0.0,
            'zero': 1.0,
            'sum': interference + updated,
            'chance_accuracy': 1 / self.context,
        }
        return facts | ({'delta_rule': 0.0} if self.keys == 'one_hot' else {})

    def tiny(self) -> 'StackedRecall':
        return dataclasses.replace(self, dim=4, pairs=3, overwrites=min(self.overwrites, 1))


def _unit_vectors(key: Key, shape: tuple[int, ...]) -> Float[Array, '...']:
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
