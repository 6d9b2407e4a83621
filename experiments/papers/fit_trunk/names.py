"""Text with names planted in it: a random name is told once, and asked for in later groups of the row.

    ... text ... <name=QWERTYUI> ... text ... <name=QWERTYUI> ... text ... <name=QWERTYUI> ...

The first group of the row tells it and every later one asks for it, each at a random place: no group holds two, so that
local layers never see what was told. Rows are windows of text; planted bytes replace the text's. Scored are the letters
of the questions, apart from the rest.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext
from experiments.papers.fit_trunk.settings import Size, decoders
from experiments.papers.novels import Rows
from experiments.papers.small_models import Setting, Variables, compare, score_rows
from jattn.data import Corpus, TextConfig
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds import Batch
from jattn.training.optimizer import AdamWConfig
from jattn.typing import Array

CUE, LETTERS = b'<name=', 26
MOST_BYTES = 2**22  # of the text that is learned from: with an eighth of them names are learned by heart, not looked up
CHANCE = 1 / LETTERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedNames(Corpus):
    """Rows of text with a name.

    Attributes:
        text: the bytes.
        tokens: T of a row.
        group: of the models that are compared: questions stand in different groups.
        letters: of a name.
        held_out_rows: how many are scored.
    """

    kind: ClassVar[str] = 'discrete'
    input_size: ClassVar[int] = 256
    output_size: ClassVar[int] = 256

    text: TextConfig
    tokens: int
    group: int
    letters: int
    held_out_rows: int

    def rows(self, split: str, align: int = 1) -> Rows:
        del align
        stream = self.text.rows(split).stream
        count = len(stream) // (self.tokens + 1)
        count = min(count, self.held_out_rows if split == self.held_out else MOST_BYTES // self.tokens)
        rows = stream[: count * (self.tokens + 1)].reshape(count, self.tokens + 1).astype(np.int32)
        rows, asked = self.planted(rows, np.random.default_rng(0 if split == self.held_out else 1))
        everywhere = np.ones((count, self.tokens), np.float32)
        batch = Batch(rows[:, :-1], rows[:, 1:], everywhere, meta={'asked': asked[:, 1:]})
        return Rows(batch, self.tokens)

    def planted(self, rows: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows with a name told and asked for, and which letters are answers."""
        rows, asked = rows.copy(), np.zeros(rows.shape, np.float32)
        length = len(CUE) + self.letters + 1
        for row, answers in zip(rows, asked):
            name = draws.integers(ord('A'), ord('A') + LETTERS, self.letters)
            planted = np.concatenate([np.frombuffer(CUE, np.uint8), name, [ord('>')]])
            for start in range(0, self.tokens, self.group):
                at = start + draws.integers(0, self.group - length + 1)
                row[at : at + length] = planted
                if start:
                    answers[at + len(CUE) : at + length - 1] = 1
        return rows, asked

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Of every byte."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The loss of all bytes and of those that are no answers, the share of letters that are right, by question."""
        asked = batch.meta['asked'] * batch.mask
        hits = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        return {
            'loss': self.loss(outputs, batch),
            'text': cross_entropy(outputs, batch.targets, batch.mask - asked),
            'names': Mean.of(hits, asked),
            'last': Mean.of(hits[:, -self.tokens // 2 :], asked[:, -self.tokens // 2 :]),
        }

    def facts(self) -> dict[str, float]:
        """Of a guess."""
        return {'chance': CHANCE}

    def tiny(self) -> 'PlantedNames':
        return dataclasses.replace(self, held_out_rows=8)


def settings(context: ClaimContext, size: Size) -> dict[str, Setting]:
    """The decoders, each trained on short rows first."""
    text = TextConfig(path=context.data('books'), tokens=size.tokens)
    found = {}
    for name, model in decoders(size).items():
        stage = None
        for tokens, batch, steps in size.stages:
            data = PlantedNames(
                text=text, tokens=tokens, group=size.group, letters=size.letters, held_out_rows=size.scored
            )
            stage = Setting(
                model=model,
                data=data,
                steps=steps,
                batch=batch,
                optimizer=AdamWConfig(peak_lr=4e-3, warmup_steps=min(50, steps // 4)),
                after=stage,
            )
        found[name] = stage
    return found


def measure(context: ClaimContext, size: Size) -> dict[str, list[dict[str, float]]]:
    """decoder -> the metrics of every seed."""

    def scores(setting: Setting, variables: Variables) -> dict[str, float]:
        return score_rows(setting, variables, rows=32)

    return compare(settings(context, size), size.seeds, scores, context.say, context.key(0))
