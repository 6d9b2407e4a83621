"""What rerunning a paper is: a module `NN_name.py` in this folder with one function, `run(context) -> list[Line]`.

A line is one claim: what was expected, what came out, whether it holds. `Line.number` states the expectation once and
checks it, so that the printed rule and the check cannot part. A claim that does not come out stays a line that does not
hold, with what was tried in its note; an expectation is never softened to fit.
"""

import dataclasses
import math
import pathlib
from typing import Self

import jax

from jattn.typing import Key

# Where the data sets that papers read lie below --data_dir: patterns, the first file or folder that fits is read.
DATA_SETS = {
    'babi': 'babi',
    'books': 'books',
    'ett': 'ett/ETTh1.csv*',
    'fashion': 'fashion_mnist_mini/fashion_900.npz',
    'fsdd': 'fsdd/fsdd_1500.npz',
    'gsm8k': 'gsm8k',
    'mnist': 'mnist/mnist_30k_10k.npz',
    'omniglot': 'omniglot/omniglot_small.npz',
    'sst2': 'sst2',
    'ucr': 'ucr_uea',
    'wikitext2': 'wikitext2',
    'xquad': 'xquad',
}


def needs(name: str) -> str:
    """The note of a line that a data set is missing for.

    >>> needs('fsdd')
    'needs --data_dir with fsdd/fsdd_1500.npz'
    """
    return f'needs --data_dir with {DATA_SETS[name]}'


@dataclasses.dataclass(frozen=True)
class ClaimContext:
    """What a paper's rerun is given.

    Attributes:
        size: 'tiny' (seconds), 'small' (minutes on two CPU cores; every line) or 'paper' (the authors' sizes).
        out: the paper's own folder, for pictures; it exists.
        data_dir: where data sets lie; None: only what ships with Python or is drawn from a key.
        seed: root of all randomness; `key(n)` is the n-th key below it.
    """

    size: str
    out: pathlib.Path
    data_dir: pathlib.Path | None = None
    seed: int = 0

    def key(self, n: int) -> Key:
        """The n-th independent key of this rerun."""
        return jax.random.fold_in(jax.random.key(self.seed), n)

    def data(self, name: str) -> str | None:
        """The file or folder of a data set; None without a data folder, and for size tiny, which reads none.

        Raises:
            FileNotFoundError: there is a data folder without it.
        """
        if self.size == 'tiny' or self.data_dir is None:
            return None
        if self.lacks(name):
            raise FileNotFoundError(f'--data_dir: {self.data_dir} holds no {DATA_SETS[name]}')
        return str(min(self.data_dir.glob(DATA_SETS[name])))

    def lacks(self, name: str) -> bool:
        """Whether a data set is needed and not there."""
        return self.size != 'tiny' and (self.data_dir is None or not any(self.data_dir.glob(DATA_SETS[name])))

    def lacking(self, *names: str) -> str:
        """The note on all data sets of some that are needed and not there; empty where none is missing."""
        return '; '.join(needs(name) for name in names if self.lacks(name))

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f'  {text}', flush=True)


@dataclasses.dataclass(frozen=True)
class Line:
    """One claim, as it stands in claims.json.

    Attributes:
        paper: the paper's number, as in '41'.
        line: the claim in words.
        expected: what the paper, or exact theory, says.
        measured: what came out; None when it could not be measured (the note says why).
        holds: whether it did as expected; None when it was not measured.
        note: where the expectation is from, what was tried, what else a reader should know.
    """

    paper: str
    line: str
    expected: str
    measured: float | str | None
    holds: bool | None
    note: str = ''

    @classmethod
    def number(
        cls,
        paper: str,
        line: str,
        measured: float,
        *,
        above: float | None = None,
        below: float | None = None,
        near: tuple[float, float] | None = None,
        note: str = '',
    ) -> Self:
        """A number against one rule: above a bound, below a bound, or near = (value, at most this far from it).

        A measured nan holds under no rule.

        >>> line = Line.number('41', 'step size', 0.887, near=(0.879, 0.04))
        >>> line.expected, line.holds
        ('0.879 ± 0.04', True)
        >>> Line.number('41', 'gap', float('nan'), below=1.0).holds
        False
        """
        rules = {
            'above': above is not None and (f'> {above:g}', measured > above),
            'below': below is not None and (f'< {below:g}', measured < below),
            'near': near is not None and (f'{near[0]:.4g} ± {near[1]:.3g}', abs(measured - near[0]) <= near[1]),
        }
        stated = [rule for rule in rules.values() if rule]
        if len(stated) != 1:
            raise ValueError(
                f'Line.number: {line!r} states {len(stated)} rules, but one of {", ".join(rules)} is needed'
            )
        expected, holds = stated[0]
        return cls(paper, line, expected, float(measured), bool(holds), note)

    @classmethod
    def count(cls, paper: str, line: str, measured: int, of: int, note: str = '') -> Self:
        """So many of so many; holds when it is all of them.

        >>> Line.count('41', 'seeds that leave the plateau', 3, of=4).measured
        '3 of 4'
        """
        return cls(paper, line, f'{of} of {of}', f'{measured} of {of}', measured == of, note)

    @classmethod
    def missing(cls, paper: str, line: str, expected: str, note: str) -> Self:
        """A line that could not be measured; the note says why. It makes the program exit with 1."""
        return cls(paper, line, expected, None, None, note)

    def to_json(self) -> dict[str, object]:
        """The line as JSON values; a number that JSON has no word for becomes text."""
        value = self.measured
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        return {**dataclasses.asdict(self), 'measured': value}
