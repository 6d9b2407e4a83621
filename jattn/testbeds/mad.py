"""MAD: six small tasks that tell sequence mixers apart (Poli et al. 2024, "Mechanistic Design and Scaling").

Layouts, ids and generators are those of `mad_tasks.py`; `TASKS` is the one table, with the published baseline sizes. A
size that is not given is the published one of the task, so that `MAD(task='compression')` is the paper's, and
`MAD(task='compression', tokens=64)` one of its variations. The published suite trains 2 blocks of width 128 and scores
the best of six settings; its other choices:

- `scored`: the three recalls train on all next tokens (`all_floor` is the exact floor, 1.16 nats as published for the
  plain one), the others on the answers; the metrics are of the answers in any case.
- `longest_keys`: fuzzy recall trains on keys of 1 to `motif` ids and tests on keys of `motif`; a copy of the task with
  this set is the test. Only then does an input say where a key ends, and so where an answer begins.
- accuracy: theirs is the mean over classes. `macro_accuracy` is that mean over the classes among a batch's answers;
  over several batches it averages their classes, and the mean of `accuracy_by_class` is exact.

Compression differs from the published one. There the last token's vector alone goes through a separate network that
decodes every place; here the model itself answers, at T query ids behind the compression id, one id for each place
(E + j asks for token j). What a fixed-size state answers has passed through that state, as there; attention may look
past the compression id at the tokens themselves, so that its scores are not those of the paper.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds import mad_tasks
from jattn.testbeds.discrete import CERTAIN, token_metrics
from jattn.testbeds.mad_tasks import Sizes
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key

SCORED = ('all', 'answers')


class Kind(NamedTuple):
    """A task of the suite: its published sizes, how rows are drawn, and the exact answers."""

    sizes: Sizes
    draw: Callable
    answer: Callable


_RECALL = Sizes(vocabulary=16, tokens=128, noise=0.0, noise_vocabulary=0, scored='all')
TASKS: dict[str, Kind] = {
    'in_context_recall': Kind(_RECALL, mad_tasks.draw_recall, mad_tasks.recall_logits),
    'noisy_recall': Kind(
        dataclasses.replace(_RECALL, vocabulary=32, noise=0.2, noise_vocabulary=16),
        mad_tasks.draw_recall,
        mad_tasks.recall_logits,
    ),
    'fuzzy_recall': Kind(
        Sizes(vocabulary=16, tokens=128, specials=1, motif=3, scored='all'),
        mad_tasks.draw_fuzzy,
        mad_tasks.recall_logits,
    ),
    'selective_copying': Kind(
        Sizes(vocabulary=16, tokens=256, specials=2, copies=16), mad_tasks.draw_copying, mad_tasks.copying_logits
    ),
    'compression': Kind(
        Sizes(vocabulary=16, tokens=32, specials=1, noise=0.0, noise_vocabulary=0),
        mad_tasks.draw_compression,
        mad_tasks.compression_logits,
    ),
    'memorization': Kind(
        Sizes(vocabulary=256, tokens=32, specials=1, noise=0.0, noise_vocabulary=0),
        mad_tasks.draw_memorization,
        mad_tasks.memorization_logits,
    ),
}
TINY = {
    'in_context_recall': dict(vocabulary=8, tokens=16),
    'noisy_recall': dict(vocabulary=10, tokens=16, noise_vocabulary=2),
    'fuzzy_recall': dict(vocabulary=9, tokens=24, motif=2),
    'selective_copying': dict(vocabulary=8, tokens=16, copies=3),
    'compression': dict(vocabulary=8, tokens=8),
    'memorization': dict(vocabulary=16, tokens=8),
}


def recall_floor(sizes: Sizes) -> float:
    """The least mean loss over all next tokens of a recall row, in nats.

    By the chain rule it is the entropy of the row, less that of its first token, over T - 1: which pairs are noise, two
    noise ids for each of these, a key for each of the c others, a value for each of their different keys, and which of
    the different keys comes last.

    >>> round(recall_floor(Sizes(vocabulary=16, tokens=128, noise=0.0)), 4)
    1.1625
    """
    pairs, keys, values = sizes.tokens // 2 - 1, sizes.keys, sizes.plain - sizes.keys
    noise, noise_ids = sizes.noise, max(sizes.noise_vocabulary or 0, 1)
    different = np.eye(1, keys + 1)[0]  # law of how many keys were seen after c draws
    total = 0.0
    for clean in range(1, pairs + 1):
        seen = np.arange(keys + 1)
        different = different * seen / keys + np.roll(different * (keys - seen) / keys, 1)
        # One pair is clean for sure, any of the pairs: clean / pairs of the ways.
        if clean < pairs and not noise:
            continue
        log_one = math.log(clean / pairs) + (clean - 1) * math.log1p(-noise)
        log_one += (pairs - clean) * math.log(noise) if noise else 0.0
        log_ways = math.lgamma(pairs + 1) - math.lgamma(clean + 1) - math.lgamma(pairs - clean + 1)
        last = different[1:] @ np.log(seen[1:])
        row = clean * math.log(keys) + different @ seen * math.log(values) + last
        row += 2 * (pairs - clean) * math.log(noise_ids) - log_one
        total += math.exp(log_ways + log_one) * row
    first = 1 / pairs + (1 - 1 / pairs) * (1 - noise)
    entropy = first * math.log(keys / first)
    if noise and first < 1:
        entropy += (1 - first) * math.log(noise_ids / (1 - first))
    return float(total - entropy) / (2 * pairs + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAD(Task):
    """One task of the suite; None: its published size.

    Attributes:
        task: a name of `TASKS`.
        vocabulary: E, noise and special ids included.
        tokens: T; recall rows have T - 1 (the last value is only a target), compression 2T (its queries).
        noise: probability that a pair, or an id of compression, is noise.
        noise_vocabulary: noise ids, part of the vocabulary.
        copies: ids to copy (selective copying).
        motif: most ids of a key or a value (fuzzy recall).
        longest_keys: whether all keys have `motif` ids (fuzzy recall's test).
        scored: what the training loss counts, 'all' next tokens (recalls) or 'answers'.

    >>> task = MAD(task='memorization', vocabulary=8, tokens=6)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs.tolist(), batch.targets.tolist()
    ([[2, 7, 1, 7, 1, 7]], [[0, 6, 0, 3, 0, 3]])
    >>> MAD().sizes.tokens, MAD(task='compression').sizes.tokens
    (128, 32)
    """

    kind: ClassVar[str] = 'discrete'

    task: str = 'in_context_recall'
    vocabulary: int | None = None
    tokens: int | None = None
    noise: float | None = None
    noise_vocabulary: int | None = None
    copies: int | None = None
    motif: int | None = None
    longest_keys: bool = False
    scored: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f'MAD: task={self.task!r} is unknown; {nearest(self.task, TASKS)}')
        where, published = f'MAD: {self.task}', TASKS[self.task].sizes
        for name, value in self._given.items():
            if getattr(published, name) is None:
                raise ValueError(f'{where}: {name}={value} is no size of this task')
        if self.longest_keys and published.motif is None:
            raise ValueError(f'{where}: longest_keys=True is for fuzzy_recall, the task with motifs')
        sizes = self.sizes
        if sizes.scored not in SCORED or (sizes.scored == 'all' and published.scored != 'all'):
            allowed = SCORED if published.scored == 'all' else SCORED[1:]
            raise ValueError(f'{where}: scored={self.scored!r} must be one of {", ".join(allowed)}')
        if sizes.noise is not None and not (0 <= sizes.noise < 1 and (not sizes.noise or sizes.noise_vocabulary > 0)):
            raise ValueError(
                f'{where}: noise={sizes.noise} must lie in 0..1, 1 excluded, and needs noise ids: '
                f'noise_vocabulary={sizes.noise_vocabulary}'
            )
        least = sizes.motif or 1
        if least < 1 or sizes.keys < least:
            raise ValueError(
                f'{where}: vocabulary={sizes.vocabulary} leaves {sizes.plain} plain ids, too few for keys and values '
                f'of at least {least} ids each'
            )
        if (sizes.keys + 1) ** least >= 2**31:
            raise ValueError(f'{where}: motif={least} of {sizes.keys} key ids has more keys than fit into int32')
        self._check_tokens(where, sizes)

    @staticmethod
    def _check_tokens(where: str, sizes: Sizes) -> None:
        if sizes.copies is not None:
            if not 1 <= sizes.copies <= sizes.tokens - sizes.copies - 1:
                raise ValueError(
                    f'{where}: tokens={sizes.tokens} must be at least {2 * sizes.copies + 1}: twice copies='
                    f'{sizes.copies}, at least 1, and the copy id'
                )
            return
        least = 4 * (sizes.motif or 1)
        if sizes.tokens < least or sizes.tokens % 2:
            raise ValueError(f'{where}: tokens={sizes.tokens} must be even and at least {least}')

    @property
    def _given(self) -> dict[str, int | float | str]:
        names = [field.name for field in dataclasses.fields(Sizes) if field.name != 'specials']
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def sizes(self) -> Sizes:
        """The published sizes, with those given in their places."""
        return dataclasses.replace(TASKS[self.task].sizes, **self._given)

    @property
    def input_size(self) -> int:
        return self.sizes.vocabulary + (self.sizes.tokens if self.task == 'compression' else 0)

    @property
    def output_size(self) -> int:
        return self.sizes.vocabulary

    def sample(self, key: Key, batch: int) -> Batch:
        options = dict(longest_keys=True) if self.longest_keys else {}
        return Batch(*TASKS[self.task].draw(key, batch, self.sizes, **options))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of all next tokens, or of the answers, in nats."""
        return cross_entropy(outputs, batch.targets, None if self.sizes.scored == 'all' else batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, sequence_accuracy and macro_accuracy of the answers, and the accuracy of every class."""
        right = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        classes = jax.nn.one_hot(batch.targets, self.output_size) * batch.mask[:, :, None]
        by_class = Mean.of(jnp.broadcast_to(right[:, :, None], classes.shape), classes, axis=(0, 1))
        return token_metrics(outputs, batch) | {
            'macro_accuracy': Mean.of(by_class.value(), by_class.count > 0),
            'accuracy_by_class': by_class,
        }

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone (memorization: and its map): the look-up; any id that may answer."""
        legal = jnp.asarray(np.where(self._legal(batch.inputs.shape[1]), 0.0, -CERTAIN), jnp.float32)
        return {
            'look_up': TASKS[self.task].answer(batch.inputs, self.sizes),
            'chance': jnp.broadcast_to(legal[None], (len(batch.inputs), *legal.shape)),
        }

    def _legal(self, places: int) -> np.ndarray:
        """[places, E], the ids that may answer at a place."""
        sizes = self.sizes
        if self.task == 'memorization':
            ids = mad_tasks.fixed_map(sizes)
        elif self.task in ('selective_copying', 'compression'):
            ids = np.arange(sizes.plain)
        else:
            ids = np.arange(sizes.keys, sizes.plain)
        legal = np.tile(np.isin(np.arange(sizes.vocabulary), ids), (places, 1))
        if self.task == 'compression':
            legal[-1] = np.arange(sizes.vocabulary) == sizes.vocabulary - 1
        return legal

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing a legal id; the floor of all next tokens; counts of the layout."""
        sizes, legal = self.sizes, int(self._legal(1 if self.task != 'compression' else 2)[0].sum())
        # Compression also asks for its compression id, which is no guess.
        ids = (sizes.tokens - 1) * (1 - sizes.noise) if self.task == 'compression' else 1.0
        free = ids / (ids + 1) if self.task == 'compression' else 1.0
        facts = {'look_up': 0.0, 'chance': free * math.log(legal), 'chance_accuracy': 1 - free + free / legal}
        if self.task in ('in_context_recall', 'noisy_recall'):
            facts['all_floor'] = recall_floor(sizes)
        if self.task == 'selective_copying':
            facts['blanks'] = float(sizes.tokens - 2 * sizes.copies - 1)
        if self.task == 'memorization':
            facts['pairs'] = float(sizes.keys)
        return facts

    def tiny(self) -> 'MAD':
        sizes = dict(TINY[self.task])
        if self.noise_vocabulary:
            sizes |= dict(vocabulary=sizes['vocabulary'] + 2, noise_vocabulary=2)
        return dataclasses.replace(self, **sizes)
