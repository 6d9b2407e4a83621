"""Long-horizon forecasting of many-channel series, one channel a row: ETT (Zhou et al. 2021, Informer) and others.

    z = (x - mean_train) / std_train                                     per channel; scores are on this scale
    window w = z[t : t + look_back],  future f = z[t + look_back : t + look_back + horizon],  both of one channel
    inputs = patches of (w - mean(w)) / std(w)        target at the last token: (f - mean(w)) / std(w)

Channels are independent rows of one model, and every window is normalised by its own mean and standard deviation
(RevIN, Kim et al. 2022, without its affine map), cut into patches as in PatchTST (Nie et al. 2023): T = look_back /
patch tokens. The training loss is the squared error in the window's units; `mse` and `mae` are taken back to the
standardised scale with the mean and std in `Batch.meta`, and are means over windows, channels and horizon, as the
literature reports. They are the literature's figures only when every window counts: give `training.eval_batches` so
many that batch x eval_batches is no less than `len(rows('test'))`; fewer are spread evenly over channels and time.

Splits are the standard ones: of ETT in months of 30 days, 12 train, 4 validation, 4 test, where the file's frequency
(hourly or every 15 minutes) is read from its dates; of other sets (exchange rates, illness) 70, 10 and 20 percent of
the rows. The windows of validation and test reach back into the split before by look_back rows. Without a file the
series is synthetic: daily and weekly waves and noise, `make_series`.
"""

import dataclasses
import datetime
import hashlib
import io
import json
import pathlib
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jattn.data.corpus import TEST, TRAIN, VALIDATION, Corpus, read_bytes
from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch
from jattn.typing import Array

EPSILON = 1e-5  # added to a window's variance
MONTHS = {TRAIN: (0, 12), VALIDATION: (12, 16), TEST: (16, 20)}
ROWS_OF_MONTH = {60: 30 * 24, 15: 30 * 24 * 4}  # minutes between rows -> rows of a month
SHARES = {TRAIN: 0.7, TEST: 0.2}  # validation is what they leave, whole rows each
CUTS = ('months', 'shares')


def make_series(channels: int = 3, rows: int = 20 * ROWS_OF_MONTH[60], noise: float = 0.3) -> np.ndarray:
    """A synthetic hourly series [rows, channels]: x_c(t) = sum over 24 h, 168 h of a sin(2 pi t / period + b) + noise.

    The amplitudes a ~ U(0.5, 1.5) and the phases b are drawn once a channel from a fixed seed; the noise is normal.

    >>> make_series().shape
    (14400, 3)
    """
    draws = np.random.default_rng(0)
    time, values = np.arange(rows)[:, None], noise * draws.normal(size=(rows, channels))
    for period in (24, 168):
        amplitude, phase = draws.uniform(0.5, 1.5, channels), draws.uniform(0, 2 * np.pi, channels)
        values += amplitude[None, :] * np.sin(2 * np.pi * time / period + phase[None, :])
    return values


@dataclasses.dataclass(frozen=True)
class WindowRows:
    """Every window of every channel of a split, channel after channel; a random-access source.

    Attributes:
        values: [rows, channels] float64, standardised, the look-back of the first window included.
        look_back, horizon, patch: see `SeriesConfig`.

    >>> rows = WindowRows(np.arange(12.0)[:, None], look_back=4, horizon=2, patch=2)
    >>> print(len(rows), rows[1].inputs.round(2), rows[1].targets.round(2)[-1], rows[1].meta['mean'])
    7 [[-1.34 -0.45]
     [ 0.45  1.34]] [2.24 3.13] 2.5
    """

    values: np.ndarray
    look_back: int
    horizon: int
    patch: int

    @property
    def tokens(self) -> int:
        """T."""
        return self.look_back // self.patch

    @property
    def windows(self) -> int:
        """Windows of a channel."""
        return max(len(self.values) - self.look_back - self.horizon + 1, 0)

    def __len__(self) -> int:
        return self.windows * self.values.shape[1]

    def __getitem__(self, row: int) -> Batch:
        channel, start = divmod(int(row), self.windows)
        piece = self.values[start : start + self.look_back + self.horizon, channel]
        window = piece[: self.look_back]
        mean, std = window.mean(), np.sqrt(window.var() + EPSILON)
        piece = ((piece - mean) / std).astype(np.float32)
        targets = np.zeros((self.tokens, self.horizon), np.float32)
        targets[-1] = piece[self.look_back :]
        return Batch(
            inputs=piece[: self.look_back].reshape(self.tokens, self.patch),
            targets=targets,
            mask=(np.arange(self.tokens) == self.tokens - 1).astype(np.float32),
            meta={'mean': np.float32(mean), 'std': np.float32(std)},
        )

    def fingerprint(self) -> str:
        """What a position counts in."""
        facts = json.dumps([self.look_back, self.horizon, self.patch, list(self.values.shape)])
        return hashlib.sha256(facts.encode() + self.values.tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesConfig(Corpus):
    """Forecasting windows of a table of numbers with dates.

    Attributes:
        path: a .csv or .csv.gz file: a header, a `date` column, a column a channel. None: the synthetic series.
        look_back: rows that are seen.
        horizon: rows that are forecast.
        patch: rows of a token; look_back is a multiple of it.
        cut: where the splits lie: 'months' (12, 4 and 4: ETT) or 'shares' (70, 10 and 20 percent: exchange, illness).
        split: what evaluation reads: 'validation' or 'test' (as tables do).

    >>> config = SeriesConfig(horizon=24)
    >>> len(config.rows('test')), config.rows('test')[0].inputs.shape, config.input_size, config.output_size
    (8571, (12, 8), 8, 24)
    """

    kind: ClassVar[str] = 'continuous'

    path: str | None = None
    look_back: int = 96
    horizon: int = 96
    patch: int = 8
    cut: str = 'months'
    split: str = TEST

    def __post_init__(self) -> None:
        for name in ('look_back', 'horizon', 'patch'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        if self.look_back % self.patch:
            raise ValueError(f'look_back={self.look_back} must be a multiple of patch={self.patch}')
        if self.cut not in CUTS:
            raise ValueError(f'cut={self.cut!r} must be one of {", ".join(CUTS)}')
        if self.split not in (VALIDATION, TEST):
            raise ValueError(f'split={self.split!r} must be one of {VALIDATION}, {TEST}')

    @property
    def input_size(self) -> int:
        return self.patch

    @property
    def output_size(self) -> int:
        return self.horizon

    @property
    def held_out(self) -> str:
        return self.split

    def rows(self, split: str, align: int = 1) -> WindowRows:
        """The windows of a split; a row is one document from its first token, so `align` asks nothing of it.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: it is no table of dates and numbers, of another frequency, or too short.
        """
        values, borders = self._table()
        train = values[: borders[TRAIN][1]]
        mean, std = train.mean(axis=0), train.std(axis=0)
        if not np.all(std > 0):
            raise ValueError(f'data.path={self.path}: a column is constant in the train split')
        first, last = borders[split]
        first = max(first - self.look_back, 0)
        rows = WindowRows((values[first:last] - mean) / std, self.look_back, self.horizon, self.patch)
        if not len(rows):
            raise ValueError(
                f'data.look_back={self.look_back} and data.horizon={self.horizon} do not fit into the '
                f'{last - first} rows of the {split} split'
            )
        return rows

    def _table(self) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
        """Values [rows, channels], and the first and last row of every split."""
        if self.path is None:
            values = make_series()
            return values, _months(60) if self.cut == 'months' else _shares(len(values))
        path = pathlib.Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f'data.path={self.path}: no such file; the ETT sets (ETTh1.csv, ETTh2.csv, ETTm1.csv, ETTm2.csv) come '
                'from the repository zhouhaoyi/ETDataset, exchange_rate.csv and national_illness.csv from the folder '
                'dataset of junwoopark92/Self-Supervised-Contrastive-Forecsating'
            )
        lines = read_bytes(path).decode().splitlines()
        names = lines[0].split(',') if lines else []
        if 'date' not in names or len(lines) < 3:
            raise ValueError(f"data.path={self.path}: must be a table with a header that has a column 'date', and rows")
        minutes = _minutes_between(self.path, lines[1:3], names.index('date')) if self.cut == 'months' else None
        channels = [column for column, name in enumerate(names) if name != 'date']
        try:
            values = np.loadtxt(io.StringIO('\n'.join(lines[1:])), delimiter=',', usecols=channels, ndmin=2)
        except ValueError as error:
            raise ValueError(f'data.path={self.path}: a value is no number: {error}') from error
        if minutes is None:
            return values, _shares(len(values))
        borders = _months(minutes)
        if len(values) < borders[TEST][1]:
            raise ValueError(
                f'data.path={self.path}: has {len(values)} rows, but 20 months at {minutes} minutes are '
                f'{borders[TEST][1]}'
            )
        return values, borders

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error of a forecast value in its window's units."""
        return Mean.of(jnp.square(outputs - batch.targets), _each(batch))

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss; mse and mae on the standardised scale."""
        error = (outputs - batch.targets) * batch.meta['std'][:, None, None]
        return {
            'loss': self.loss(outputs, batch),
            'mse': Mean.of(jnp.square(error), _each(batch)),
            'mae': Mean.of(jnp.abs(error), _each(batch)),
        }

    def facts(self) -> dict[str, float]:
        """mse and mae over all windows of the held-out split: repeating the last value, and the window's mean."""
        rows = self.rows(self.split)
        totals = dict.fromkeys(('last_value_mse', 'last_value_mae', 'window_mean_mse', 'window_mean_mae'), 0.0)
        for series in rows.values.T:
            pieces = np.lib.stride_tricks.sliding_window_view(series, self.look_back + self.horizon)
            window, future = pieces[:, : self.look_back], pieces[:, self.look_back :]
            for name, guess in (('last_value', window[:, -1:]), ('window_mean', window.mean(axis=1, keepdims=True))):
                totals[f'{name}_mse'] += np.square(future - guess).sum()
                totals[f'{name}_mae'] += np.abs(future - guess).sum()
        return {name: float(total) / (len(rows) * self.horizon) for name, total in totals.items()}

    def tiny(self) -> 'SeriesConfig':
        """A copy with short windows."""
        return dataclasses.replace(self, look_back=16, horizon=4, patch=4)


def _each(batch: Batch) -> Array:
    """The mask of every forecast value."""
    return jnp.broadcast_to(batch.mask[:, :, None], batch.targets.shape)


def _months(minutes: int) -> dict[str, tuple[int, int]]:
    month = ROWS_OF_MONTH[minutes]
    return {split: (first * month, last * month) for split, (first, last) in MONTHS.items()}


def _shares(rows: int) -> dict[str, tuple[int, int]]:
    """As the literature cuts: whole rows of train and test, counted from the two ends.

    >>> _shares(966)
    {'train': (0, 676), 'validation': (676, 773), 'test': (773, 966)}
    """
    train, test = int(SHARES[TRAIN] * rows), rows - int(SHARES[TEST] * rows)
    return {TRAIN: (0, train), VALIDATION: (train, test), TEST: (test, rows)}


def _minutes_between(path: str, lines: list[str], column: int) -> int:
    """Minutes from one row to the next."""
    try:
        first, second = (datetime.datetime.fromisoformat(line.split(',')[column]) for line in lines)
    except (ValueError, IndexError) as error:
        raise ValueError(f'data.path={path}: a date cannot be read: {error}') from error
    minutes = (second - first).total_seconds() / 60
    if minutes not in ROWS_OF_MONTH:
        raise ValueError(
            f'data.path={path}: a row every {minutes:g} minutes, but months are known for 60 (ETTh) and 15 (ETTm): '
            'data.cut=shares cuts others'
        )
    return int(minutes)
