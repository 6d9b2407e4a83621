"""Series with a class: sets of the UCR and UEA archives (Dau et al. 2019; Bagnall et al. 2018).

    z = (x - mean_train) / std_train        per channel, over the real steps of the training rows

The train and test splits are the archives' own; there is no validation split. Without a file the series are synthetic,
`make_series`, of the set's length, channels and classes.
"""

import dataclasses
from typing import ClassVar, Self

import numpy as np

from jattn.data.classes import ClassCorpus, ClassRows, cut, rank_in_class
from jattn.data.corpus import TEST, TRAIN

SETS = {  # steps, channels, classes
    'ArrowHead': (251, 1, 3),
    'BasicMotions': (100, 6, 4),
    'GunPoint': (150, 1, 2),
    'ItalyPowerDemand': (24, 1, 2),
    'JapaneseVowels': (29, 12, 9),
    'OSULeaf': (427, 1, 6),
}
MADE = {TRAIN: (0, 60), TEST: (60, 100)}  # synthetic series of a class


def make_series(steps: int, channels: int, classes: int, noise: float = 0.5) -> ClassRows:
    """Synthetic series, the classes in turn: a sine a channel with the class's period, any phase, and normal noise.

    Periods are drawn from steps / 8 .. steps / 2, and rows are cut to lengths from steps / 2 on, all from a fixed seed.

    >>> make_series(24, 2, 3).inputs.shape
    (300, 24, 2)
    """
    draws = np.random.default_rng(0)
    periods = draws.uniform(steps / 8, steps / 2, (classes, channels))
    labels = np.tile(np.arange(classes), 100)
    phases = draws.uniform(0, 2 * np.pi, (len(labels), 1, channels))
    values = np.sin(2 * np.pi * np.arange(steps)[None, :, None] / periods[labels][:, None] + phases)
    values = (values + noise * draws.normal(size=values.shape)).astype(np.float32)
    lengths = draws.integers(steps // 2, steps + 1, len(labels))
    return ClassRows.of([row[:length] for row, length in zip(values, lengths)], labels.tolist(), steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UCRConfig(ClassCorpus):
    """A set of the archives, from SET.npz in a folder.

    The file holds x_train, x_test [N, T, C], NaN past a row's length; y_train, y_test; len_train, len_test [N].

    Attributes:
        name: the set.

    >>> config = UCRConfig(name='BasicMotions')
    >>> config.rows('test')[0].inputs.shape, config.input_size, config.output_size
    ((100, 6), 6, 4)
    """

    kind: ClassVar[str] = 'continuous'
    splits: ClassVar[tuple[str, ...]] = (TEST,)
    origin: ClassVar[str] = (
        "the folder of the sets' .npz files, made from aeon/datasets/data of the repository aeon-toolkit/aeon"
    )

    name: str = 'JapaneseVowels'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in SETS:
            raise ValueError(f'name={self.name!r} must be one of {", ".join(SETS)}')

    @property
    def input_size(self) -> int:
        return SETS[self.name][1]

    @property
    def classes(self) -> int:
        return SETS[self.name][2]

    def make(self) -> dict[str, ClassRows]:
        rows = make_series(*SETS[self.name])
        return self._standardised(cut(rows, rank_in_class(rows.labels), MADE))

    def read(self) -> dict[str, ClassRows]:
        path = self.find(f'{self.name}.npz')
        splits = {}
        for split in (TRAIN, TEST):
            values, labels, lengths = self.arrays(path, f'x_{split}', f'y_{split}', f'len_{split}')
            if values.shape[1:] != SETS[self.name][:2]:
                raise ValueError(f'data.path={self.path}: x_{split} must be [N, T, C] with {SETS[self.name][:2]}')
            splits[split] = ClassRows(np.nan_to_num(values), labels.astype(np.int32), lengths.astype(np.int32))
        return self._standardised(splits)

    def _standardised(self, splits: dict[str, ClassRows]) -> dict[str, ClassRows]:
        """By the training split; padding stays 0."""
        train = splits[TRAIN]
        real = np.arange(train.tokens)[None] < train.lengths[:, None]
        mean, std = train.inputs[real].mean(axis=0), train.inputs[real].std(axis=0)
        if not np.all(std > 0):
            raise ValueError(f'data.path={self.path}: a channel of {self.name} is constant in the train split')

        def scaled(rows: ClassRows) -> ClassRows:
            real = np.arange(rows.tokens)[None] < rows.lengths[:, None]
            inputs = np.where(real[:, :, None], (rows.inputs - mean) / std, 0).astype(np.float32)
            whole = bool(np.all(rows.lengths == rows.tokens))
            return dataclasses.replace(rows, inputs=inputs, lengths=None if whole else rows.lengths)

        return {split: scaled(rows) for split, rows in splits.items()}

    def tiny(self) -> Self:
        """The shortest set."""
        return dataclasses.replace(self, name='ItalyPowerDemand') if self.path is None else self
