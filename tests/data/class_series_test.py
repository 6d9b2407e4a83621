"""Sets of the UCR and UEA archives: standardisation over real steps, padding, the file's form."""

import numpy as np
import pytest

from jattn.data import UCRConfig
from jattn.data.corpus import TEST, TRAIN


def write(folder, name, shape, lengths, labels=(0, 1, 0, 1)):
    """A file of four rows for each split; returns the values of the two."""
    draws, arrays = np.random.default_rng(0), {}
    for split in ('train', 'test'):
        values = draws.normal(3, 2, (4, *shape)).astype(np.float32)
        for row, length in zip(values, lengths):
            row[length:] = np.nan
        arrays |= {f'x_{split}': values, f'y_{split}': np.array(labels), f'len_{split}': np.array(lengths)}
    np.savez(folder / f'{name}.npz', **arrays)
    return arrays['x_train'], arrays['x_test']


def test_channels_are_standardised_over_the_real_steps_of_the_training_rows(tmp_path):
    train, test = write(tmp_path, 'JapaneseVowels', (29, 12), (29, 10, 7, 20))
    config = UCRConfig(path=str(tmp_path))
    real = ~np.isnan(train[..., 0])
    mean, std = train[real].mean(axis=0), train[real].std(axis=0)
    for split, values in ((TRAIN, train), (TEST, test)):
        rows = config.rows(split)
        assert rows.lengths.tolist() == [29, 10, 7, 20] and rows.labels.tolist() == [0, 1, 0, 1]
        for row, own, length in zip(rows.inputs, values, rows.lengths):
            np.testing.assert_allclose(row[:length], (own[:length] - mean) / std, atol=1e-5)
            assert not np.any(row[length:])


def test_rows_of_one_length_have_no_segments(tmp_path):
    write(tmp_path, 'ItalyPowerDemand', (24, 1), (24,) * 4)
    assert UCRConfig(path=str(tmp_path), name='ItalyPowerDemand').rows(TEST)[0].segments is None


def test_a_file_of_another_set_is_named(tmp_path):
    write(tmp_path, 'GunPoint', (149, 1), (149,) * 4)
    with pytest.raises(ValueError, match=r'x_train must be \[N, T, C\] with \(150, 1\)'):
        UCRConfig(path=str(tmp_path), name='GunPoint').rows(TRAIN)
    with pytest.raises(FileNotFoundError, match='no file OSULeaf.npz in it; needed is the folder'):
        UCRConfig(path=str(tmp_path), name='OSULeaf').rows(TRAIN)


def test_a_constant_channel_and_an_unknown_set_are_refused(tmp_path):
    values = np.ones((4, 24, 1), np.float32)
    arrays = {
        f'{x}_{split}': y for split in ('train', 'test') for x, y in (('x', values), ('y', [0] * 4), ('len', [24] * 4))
    }
    np.savez(tmp_path / 'ItalyPowerDemand.npz', **arrays)
    with pytest.raises(ValueError, match='a channel of ItalyPowerDemand is constant in the train split'):
        UCRConfig(path=str(tmp_path), name='ItalyPowerDemand').rows(TRAIN)
    with pytest.raises(ValueError, match="name='Wine' must be one of ArrowHead, BasicMotions"):
        UCRConfig(name='Wine')
