"""Spoken digits: mel filters, frames, and the file's form."""

import numpy as np
import pytest

from jattn.data import FSDDConfig
from jattn.data.audio import FOURIER, HOP, RATE, WINDOW, log_mel, mel_filters
from jattn.data.corpus import TEST, TRAIN


def test_neighbouring_filters_sum_to_one_between_the_outer_centres():
    filters = mel_filters(20)
    peaks = filters.argmax(axis=1)
    assert np.all(np.diff(peaks) > 0)
    np.testing.assert_allclose(filters[:, peaks[0] + 1 : peaks[-1]].sum(axis=0), 1, atol=1e-12)


def test_centres_are_equally_spaced_on_the_mel_scale_of_htk():
    filters = mel_filters(10, fourier=2**16)
    centres = filters.argmax(axis=1) * RATE / 2**16
    mel = 2595 * np.log10(1 + centres / 700)
    np.testing.assert_allclose(mel, np.arange(1, 11) * 2595 * np.log10(1 + RATE / 2 / 700) / 11, atol=0.1)


@pytest.mark.parametrize('hertz', [300, 1000, 3000])
def test_a_tone_is_loudest_in_the_filter_around_it(hertz):
    frames = log_mel(np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE), 40)
    loudest = frames.argmax(axis=1)
    expected = mel_filters(40)[:, round(hertz * FOURIER / RATE)].argmax()
    assert np.all(abs(loudest - expected) <= 1)


def test_a_frame_is_one_window_and_one_hop_further():
    sound = np.random.default_rng(0).normal(size=WINDOW + 3 * HOP)
    frames = log_mel(sound, 8)
    assert frames.shape == (4, 8)
    np.testing.assert_allclose(frames[2:3], log_mel(sound[2 * HOP : 2 * HOP + WINDOW], 8), rtol=1e-9)
    assert log_mel(sound[:10], 8).shape == (1, 8)


def write(path, sounds, digit, speaker, index):
    """A file of the set's form."""
    samples = np.concatenate(sounds).astype(np.int16)
    difference = np.diff(samples.view(np.uint16), prepend=np.uint16(0))
    np.savez(
        path,
        delta_lo=(difference & 255).astype(np.uint8),
        delta_hi=(difference >> 8).astype(np.uint8),
        offsets=np.cumsum([0, *map(len, sounds)]),
        digit=np.array(digit, np.int8),
        speaker=np.array(speaker, np.int8),
        index=np.array(index, np.int8),
    )


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    """Two digits of two speakers, five recordings each, the last first; indices 3 to 7."""
    draws = np.random.default_rng(0)
    facts = [(d, s, i) for d in (0, 9) for s in (0, 5) for i in (7, 6, 5, 4, 3)]
    sounds = [draws.integers(-(2**15), 2**15, 1000 + 400 * n) for n in range(len(facts))]
    path = tmp_path_factory.mktemp('audio') / 'sounds.npz'
    write(path, sounds, *zip(*facts))
    return path, sounds, facts


def test_samples_are_the_sums_of_the_files_differences(recorded):
    path, sounds, facts = recorded
    rows = FSDDConfig(path=str(path), frames=20).rows(TRAIN)
    own = log_mel(sounds[0] / 2**15, 40)
    row = rows[0]
    assert row.segments.sum() == len(own) == 11 and row.targets == facts[0][0]
    np.testing.assert_allclose(row.inputs[:11], (own - own.mean()) / own.std(), atol=1e-5)
    assert rows.lengths.max() == 20 and not np.any(row.inputs[11:])


def test_an_index_below_five_is_held_out(recorded):
    path, _, facts = recorded
    for target, place in (('digit', 0), ('speaker', 1)):
        config = FSDDConfig(path=str(path), target=target)
        assert config.rows(TEST).labels.tolist() == [fact[place] for fact in facts if fact[2] < 5]
        assert config.rows(TRAIN).labels.tolist() == [fact[place] for fact in facts if fact[2] >= 5]


def test_few_recordings_are_the_first_of_each_digit_and_speaker(recorded):
    path, _, facts = recorded
    all_rows, few = (FSDDConfig(path=str(path), recordings=n).rows(TRAIN) for n in (None, 1))
    first = [n for n, fact in enumerate(fact for fact in facts if fact[2] >= 5) if fact[2] == 7]
    np.testing.assert_array_equal(few.inputs, all_rows.inputs[first])
    assert len(FSDDConfig(path=str(path), recordings=1).rows(TEST)) == 8


def test_a_file_whose_offsets_do_not_fit_is_named(tmp_path):
    write(tmp_path / 'a.npz', [np.zeros(400)], [0, 1], [0, 0], [0, 9])
    with pytest.raises(ValueError, match='a.npz: offsets must hold where each recording begins'):
        FSDDConfig(path=str(tmp_path / 'a.npz')).rows(TRAIN)


BAD = {
    'target': (dict(target='word'), "target='word' must be one of digit, speaker"),
    'mels': (dict(mels=0), 'mels=0 must be at least 1'),
    'recordings': (dict(recordings=0), 'recordings=0 must be at least 1'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_fields_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        FSDDConfig(**fields)
