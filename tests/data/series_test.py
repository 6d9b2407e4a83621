"""Forecasting windows: borders, standardisation, instance normalisation and its inverse, exact naive baselines."""

import datetime
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data.corpus import TEST, TRAIN, VALIDATION
from jattn.data.series import ROWS_OF_MONTH, SeriesConfig, WindowRows, make_series


def write_table(path, minutes, rows, channels=2, seed=0):
    """A table with an hourly or quarter-hourly date column; returns its values."""
    values = np.round(np.random.default_rng(seed).normal(size=(rows, channels)).cumsum(axis=0), 3)
    start = datetime.datetime(2016, 7, 1)
    dates = [start + datetime.timedelta(minutes=minutes * i) for i in range(rows)]
    lines = [','.join([str(date), *map(str, row)]) for date, row in zip(dates, values.tolist())]
    text = '\n'.join(['date,' + ','.join(f'C{c}' for c in range(channels)), *lines])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return values


@pytest.fixture(scope='module')
def hourly(tmp_path_factory):
    path = tmp_path_factory.mktemp('series') / 'ETTh9.csv.gz'
    return path, write_table(path, 60, 14_500)


def config_of(path, **fields):
    return SeriesConfig(path=str(path), **(dict(look_back=24, horizon=6, patch=8) | fields))


@pytest.mark.parametrize('split, first, last', [(TRAIN, 0, 8640), (VALIDATION, 8616, 11520), (TEST, 11496, 14400)])
def test_splits_are_months_and_the_held_out_ones_reach_back_by_the_look_back(hourly, split, first, last):
    path, values = hourly
    rows = config_of(path).rows(split)
    mean, std = values[:8640].mean(axis=0), values[:8640].std(axis=0)
    np.testing.assert_allclose(rows.values, (values[first:last] - mean) / std, rtol=1e-12, atol=1e-12)
    assert len(rows) == 2 * (last - first - 24 - 6 + 1)


def test_the_first_forecast_of_a_held_out_split_is_its_first_row(hourly):
    path, values = hourly
    row = config_of(path).rows(TEST)[0]
    future = row.targets[-1] * row.meta['std'] + row.meta['mean']
    train = values[:8640, 0]
    np.testing.assert_allclose(future, (values[11520:11526, 0] - train.mean()) / train.std(), rtol=1e-5, atol=1e-5)


def test_quarters_of_an_hour_have_four_times_the_rows(tmp_path):
    write_table(tmp_path / 'ETTm9.csv', 15, 57_600, channels=1)
    rows = config_of(tmp_path / 'ETTm9.csv').rows(TEST)
    assert rows.windows == 11_520 - 6 + 1


@pytest.mark.parametrize('split, first, last', [(TRAIN, 0, 70), (VALIDATION, 62, 81), (TEST, 73, 101)])
def test_shares_are_whole_rows_of_any_dates(tmp_path, split, first, last):
    values = write_table(tmp_path / 'daily.csv', 24 * 60, 101)
    rows = config_of(tmp_path / 'daily.csv', cut='shares', look_back=8).rows(split)
    mean, std = values[:70].mean(axis=0), values[:70].std(axis=0)
    np.testing.assert_allclose(rows.values, (values[first:last] - mean) / std, rtol=1e-12, atol=1e-12)


def test_a_row_is_one_window_of_one_channel_normalised_by_itself_alone(hourly):
    rows = config_of(hourly[0]).rows(TEST)
    for number, channel, start in ((5, 0, 5), (rows.windows + 7, 1, 7)):
        row, piece = rows[number], rows.values[start : start + 30, channel]
        assert row.inputs.shape == (3, 8) and row.inputs.dtype == row.targets.dtype == np.float32
        inputs = row.inputs.reshape(-1)
        assert abs(inputs.mean()) < 1e-5
        np.testing.assert_allclose(inputs.var(), piece[:24].var() / (piece[:24].var() + 1e-5), rtol=1e-4)
        np.testing.assert_allclose(inputs * row.meta['std'] + row.meta['mean'], piece[:24], atol=1e-5)
        np.testing.assert_allclose(row.targets[-1] * row.meta['std'] + row.meta['mean'], piece[24:], atol=1e-5)
        assert row.mask.tolist() == [0, 0, 1] and not np.any(row.targets[:-1])
        shifted = WindowRows(rows.values + 7, 24, 6, 8)[number]
        np.testing.assert_allclose(shifted.inputs, row.inputs, atol=1e-5)
        np.testing.assert_allclose(shifted.targets, row.targets, atol=1e-5)


def test_every_window_counts_once_in_a_whole_evaluation(hourly):
    config = config_of(hourly[0])
    rows = config.rows(TEST)
    batches = config.eval_batches(batch=100, batches=100)
    assert sum(batch.mask.sum() for batch in batches) == len(rows)
    means = np.concatenate([batch.meta['mean'][batch.mask[:, -1] > 0] for batch in batches])
    np.testing.assert_array_equal(means, [rows[i].meta['mean'] for i in range(len(rows))])


def test_fewer_batches_are_spread_over_channels_and_time_and_processes(hourly):
    config = config_of(hourly[0])
    rows = config.rows(TEST)
    (batch,) = config.eval_batches(batch=8, batches=1)
    chosen = [rows[i * len(rows) // 8] for i in range(8)]
    np.testing.assert_array_equal(batch.inputs, np.stack([row.inputs for row in chosen]))
    halves = [config.eval_batches(batch=8, batches=1, process=p, processes=2)[0] for p in range(2)]
    np.testing.assert_array_equal(batch.meta['std'], np.concatenate([half.meta['std'] for half in halves]))


def naive_outputs(batch, name):
    """Forecasts of a naive baseline as a model would say them, in the window's units."""
    window = batch.inputs.reshape(len(batch.inputs), -1)
    guess = window[:, -1] if name == 'last_value' else window.mean(axis=1)
    return np.broadcast_to(guess[:, None, None], batch.targets.shape)


@pytest.mark.parametrize('split', [VALIDATION, TEST])
def test_naive_forecasts_score_what_the_facts_say(hourly, split):
    config = config_of(hourly[0], split=split)
    facts, metrics = config.facts(), jax.jit(config.metrics)
    for name in ('last_value', 'window_mean'):
        totals = None
        for batch in config.eval_batches(batch=1000, batches=100):
            found = metrics(naive_outputs(batch, name), batch)
            totals = found if totals is None else {key: totals[key] + found[key] for key in found}
        assert float(totals['mse'].value()) == pytest.approx(facts[f'{name}_mse'], rel=1e-4)
        assert float(totals['mae'].value()) == pytest.approx(facts[f'{name}_mae'], rel=1e-4)


def test_the_loss_is_in_the_windows_units_and_the_scores_are_not():
    config = SeriesConfig(look_back=8, horizon=2, patch=4)
    batch = config.eval_batches(batch=4, batches=1)[0]
    error = np.zeros((4, 2, 2), np.float32)
    error[:, -1] = [[1.0, -2.0]]
    error[:, 0] = 9.0  # not the last token: not scored
    metrics = config.metrics(jnp.asarray(batch.targets + error), batch)
    assert float(metrics['loss'].value()) == pytest.approx(2.5)
    assert float(metrics['mse'].value()) == pytest.approx(2.5 * np.mean(np.square(batch.meta['std'])), rel=1e-5)
    assert float(metrics['mae'].value()) == pytest.approx(1.5 * np.mean(batch.meta['std']), rel=1e-5)


def test_training_batches_resume_and_know_their_data(hourly):
    config = config_of(hourly[0])
    first, second = (config.train_batches(16, seed=0) for _ in range(2))
    for _ in range(3):
        next(first)
    second.position = first.position
    batch = next(first)
    jax.tree.map(np.testing.assert_array_equal, batch, next(second))
    assert batch.inputs.shape == (16, 3, 8) and batch.meta['std'].shape == (16,)
    prints = {config_of(hourly[0], **change).rows(TRAIN).fingerprint() for change in ({}, {'horizon': 7}, {'patch': 6})}
    assert len(prints | {SeriesConfig(look_back=24, horizon=6, patch=8).rows(TRAIN).fingerprint()}) == 4


def test_the_synthetic_series_is_waves_and_noise():
    values = make_series()
    assert values.shape == (20 * ROWS_OF_MONTH[60], 3)
    time = np.arange(len(values))
    waves = np.stack([f(2 * np.pi * time / period) for period in (24, 168) for f in (np.sin, np.cos)], axis=1)
    weights, *_ = np.linalg.lstsq(waves, values)
    noise = values - waves @ weights
    np.testing.assert_allclose(noise.std(axis=0), 0.3, rtol=0.03)
    amplitudes = np.hypot(weights[::2], weights[1::2])
    assert np.all((amplitudes > 0.45) & (amplitudes < 1.55))
    np.testing.assert_array_equal(values, make_series())


BAD = {
    'patch': (dict(look_back=10, patch=4), 'look_back=10 must be a multiple of patch=4'),
    'horizon': (dict(horizon=0), 'horizon=0 must be at least 1'),
    'cut': (dict(cut='weeks'), "cut='weeks' must be one of months, shares"),
    'split': (dict(split='train'), "split='train' must be one of validation, test"),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_fields_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SeriesConfig(**fields)


def test_a_missing_file_names_the_set_and_where_it_is_from():
    with pytest.raises(FileNotFoundError, match=r'data.path=nowhere/ETTh1.csv: no such file; .* zhouhaoyi/ETDataset'):
        SeriesConfig(path='nowhere/ETTh1.csv').rows(TRAIN)


CONTENT = {
    'no_dates': ('a,b\n1,2\n3,4\n', "must be a table with a header that has a column 'date'"),
    'date': ('date,a\nnow,2\nthen,4\n', 'a date cannot be read'),
    'daily': ('date,a\n2016-07-01,2\n2016-07-02,4\n', 'a row every 1440 minutes, but months are known for 60'),
    'number': ('date,a\n2016-07-01 00:00:00,x\n2016-07-01 01:00:00,4\n', 'a value is no number'),
    'short': ('date,a\n2016-07-01 00:00:00,2\n2016-07-01 01:00:00,4\n', 'has 2 rows, but 20 months at 60 minutes are'),
    'empty': ('', "must be a table with a header that has a column 'date'"),
}


@pytest.mark.parametrize('name', CONTENT)
def test_a_file_that_is_no_series_is_named(name, tmp_path):
    text, message = CONTENT[name]
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        SeriesConfig(path=str(tmp_path / 'a.csv')).rows(TRAIN)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='data.look_back=96 and data.horizon=3000 do not fit into the 2976 rows'):
        SeriesConfig(horizon=3000).rows(TEST)
