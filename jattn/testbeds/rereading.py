"""Re-reading: the context of another task, read several times before its questions.

    reads = 2:   c_1 .. c_S  SEP  c_1 .. c_S  q_1 .. q_R           targets at the questions, those of the task
    with `read_questions`:   c_1 .. c_S  q_1 .. q_R  SEP  c_1 .. c_S  q_1 .. q_R           targets at the last ones

The form of RE2 ("Re-Reading Improves Reasoning in Language Models", Xu et al. 2024) for models trained from scratch. In
a causal model the first copy of a token cannot know what follows it, the second can. With `read_questions` that which
follows is also what will be asked, as in RE2, whose text is the question itself: a state too small for everything can
drop, on the second read, what it need not answer. Positions run on through the copies; only the last questions are
scored, so every number of reads has the same targets.

`filler` is the control of equal length: SEP in place of every further copy, so that more tokens, and not their content,
would have to help. It works for every task of tokens that says where its context ends (`context`) and scores nothing
in it.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jattn.nn.losses import Mean
from jattn.testbeds.associative_recall import AssociativeRecall
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Int32, Key


def reread(
    context: Int32[Array, 'B S'],
    reads: int,
    separator: int,
    filler: bool = False,
    questions: Int32[Array, 'B R'] | None = None,
) -> Int32[Array, 'B T']:
    """A context `reads` times with a separator between the copies, or once and then separators: r S + r - 1 tokens.

    With `questions`, these stand behind every copy: r R tokens more.

    >>> reread(jnp.array([[1, 2]]), 2, 9).tolist(), reread(jnp.array([[1, 2]]), 2, 9, filler=True).tolist()
    ([[1, 2, 9, 1, 2]], [[1, 2, 9, 9, 9]])
    >>> reread(jnp.array([[1, 2]]), 1, 9).tolist()
    [[1, 2]]
    >>> reread(jnp.array([[1, 2]]), 2, 9, questions=jnp.array([[3]])).tolist()
    [[1, 2, 3, 9, 1, 2, 3]]
    """
    between = jnp.full((len(context), 1), separator, context.dtype)
    again = jnp.full_like(context, separator) if filler else context
    behind = [] if questions is None else [questions]
    return jnp.concatenate([context, *behind, *[between, again, *behind] * (reads - 1)], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReReading(Task):
    """Another task with its context read several times.

    Attributes:
        task: the other task; its context is the first `task.context` tokens.
        reads: r, how often the context stands in a row.
        filler: whether separators stand in place of the further copies.
        read_questions: whether the questions stand behind every copy, and not behind the last one alone.

    >>> import jax
    >>> task = ReReading(task=AssociativeRecall(vocabulary=16, tokens=8, pairs=2), reads=2)
    >>> task.sample(jax.random.key(0), 1).inputs[0].tolist()
    [7, 10, 1, 15, 16, 7, 10, 1, 15, 1, 0, 7, 0]
    """

    kind: ClassVar[str] = 'discrete'

    task: Task = AssociativeRecall()
    reads: int = 2
    filler: bool = False
    read_questions: bool = False

    def __post_init__(self) -> None:
        name = type(self.task).__name__
        if self.task.kind != 'discrete' or not hasattr(self.task, 'context'):
            raise ValueError(f'ReReading: task={name} does not say where its context of tokens ends')
        if self.reads < 1:
            raise ValueError(f'ReReading: reads={self.reads} must be at least 1')
        if self.filler and self.reads == 1:
            raise ValueError('ReReading: filler=True needs reads of at least 2: it takes the place of further copies')

    @property
    def input_size(self) -> int:
        return self.task.input_size + 1

    @property
    def output_size(self) -> int:
        return self.task.output_size

    def sample(self, key: Key, batch: int) -> Batch:
        once, size = self.task.sample(key, batch), self.task.context
        context, questions = once.inputs[:, :size], once.inputs[:, size:]
        behind = questions if self.read_questions else None
        inputs = reread(context, self.reads, self.task.input_size, self.filler, behind)
        if not self.read_questions:
            inputs = jnp.concatenate([inputs, questions], axis=1)
        tokens = inputs.shape[1]
        return Batch(inputs, self._spread(once.targets, tokens), self._spread(once.mask, tokens), meta={'once': once})

    def _spread(self, x: Array, tokens: int) -> Array:
        """From the rows of the task [B, S + R, ...] to ours: zeros between the first copy and the last questions."""
        size = self.task.context
        between = jnp.zeros((len(x), tokens - x.shape[1], *x.shape[2:]), x.dtype)
        return jnp.concatenate([x[:, :size], between, x[:, size:]], axis=1)

    def _once(self, outputs: Float[Array, 'B T E'], batch: Batch) -> Float[Array, 'B T E']:
        """The outputs at the first copy and at the last questions, as the task scores them."""
        size, tokens = self.task.context, batch.meta['once'].inputs.shape[1]
        return jnp.concatenate([outputs[:, :size], outputs[:, size - tokens :]], axis=1)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """The task's, at the last questions."""
        return self.task.loss(self._once(outputs, batch), batch.meta['once'])

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The task's."""
        return self.task.metrics(self._once(outputs, batch), batch.meta['once'])

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """The task's, from one read."""
        tokens = batch.inputs.shape[1]
        return {name: self._spread(said, tokens) for name, said in self.task.baselines(batch.meta['once']).items()}

    def facts(self) -> dict[str, float]:
        """The task's: further reads add nothing that an exact solver lacks."""
        return self.task.facts()

    def tiny(self) -> 'ReReading':
        return dataclasses.replace(self, task=self.task.tiny())
