"""Spoken digits: recordings as log-mel frames (FSDD, the Free Spoken Digit Dataset).

    power_t = |FFT(Hann window of 25 ms at 10 ms t)|^2         frame_t = log(mel filters . power_t)        [T, mels]

Filters are triangles of equal width on the mel scale of HTK, 2595 log10(1 + f / 700), from 0 Hz to half the rate. A
recording's frames are standardised together, mean 0 and deviation 1, then cut or padded to a fixed T. Without a file
the recordings are synthetic, `make_recordings`.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar, Self

import numpy as np

from jattn.data.classes import ClassCorpus, ClassRows, rank_in_class
from jattn.data.corpus import TEST, TRAIN
from jattn.typing import Float

RATE = 8000  # samples a second
WINDOW, HOP, FOURIER = 200, 80, 512  # samples; the window is padded, so that no filter falls between frequencies
FLOOR = 1e-6  # the least power of a filter
HELD_OUT = 5  # recordings of a digit and a speaker with an index below are the test split
SPEAKERS, DIGITS = 6, 10
TARGETS = {'digit': DIGITS, 'speaker': SPEAKERS}


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Sounds and what is known of them.

    Attributes:
        sounds: samples between -1 and 1, one array a recording.
        digit, speaker, index: [N].
    """

    sounds: list[np.ndarray]
    digit: np.ndarray
    speaker: np.ndarray
    index: np.ndarray


def make_recordings(per_pair: int = 8) -> Recordings:
    """Synthetic recordings of 0.3 to 0.5 s: tones that rise or fall, of a digit and a speaker, in noise.

    Digit d goes from pitch a_d to b_d, both in 0.5 .. 2; speaker s multiplies them by 200 + 40 s Hz and has s + 1
    overtones of equal strength.

    >>> made = make_recordings(1)
    >>> len(made.sounds), len(set(made.speaker)), 0.3 <= len(made.sounds[0]) / RATE <= 0.5
    (60, 6, True)
    """
    draws = np.random.default_rng(0)
    pitches = draws.uniform(0.5, 2, (DIGITS, 2))
    digit, speaker, index = (axis.ravel() for axis in np.indices((DIGITS, SPEAKERS, per_pair)))
    sounds = []
    for d, s in zip(digit, speaker):
        samples = draws.integers(int(0.3 * RATE), int(0.5 * RATE))
        frequency = (200 + 40 * s) * np.linspace(*pitches[d], samples)
        phase = 2 * np.pi * np.cumsum(frequency) / RATE
        tone = np.sum([np.sin(n * phase) for n in range(1, s + 3)], axis=0) / (s + 2)
        sounds.append(0.5 * tone + 0.05 * draws.normal(size=samples))
    return Recordings(sounds, digit, speaker, index)


@functools.cache
def mel_filters(mels: int, fourier: int = FOURIER, rate: int = RATE) -> Float[np.ndarray, 'M F']:
    """Triangular filters over the frequencies of a real Fourier transform.

    >>> filters = mel_filters(40)
    >>> filters.shape, bool(np.all(filters.sum(axis=1) > 0)), float(filters.max()) <= 1
    ((40, 257), True, True)
    """
    frequencies = np.arange(fourier // 2 + 1) * rate / fourier
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies[None] - low) / (centre - low)
    falling = (high - frequencies[None]) / (high - centre)
    return np.maximum(np.minimum(rising, falling), 0)


def log_mel(sound: Float[np.ndarray, 'N'], mels: int) -> Float[np.ndarray, 'T M']:
    """The frames of a sound, a whole window each; shorter sounds are padded to one.

    >>> log_mel(np.zeros(8000), 40).shape
    (98, 40)
    """
    sound = np.pad(sound, (0, max(WINDOW - len(sound), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, FOURIER, axis=1)) ** 2
    # Not a matrix product: so small a one costs more in threads than in arithmetic.
    return np.log(np.maximum(np.einsum('tf,mf->tm', power, mel_filters(mels)), FLOOR))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSDDConfig(ClassCorpus):
    """Spoken digits, from an .npz file of differences of samples.

    The file holds delta_lo and delta_hi [samples] uint8, the low and high bytes of the sample-to-sample difference
    modulo 2^16; offsets [N + 1], where each recording begins; digit, speaker and index [N]. Recordings of an index
    below 5 are the test split, the set's own rule.

    Attributes:
        target: 'digit' (10 classes) or 'speaker' (6).
        mels: filters.
        frames: T.
        recordings: how many of each digit and speaker are trained on, the first in the file; None: all.

    >>> row = FSDDConfig().rows('test')[0]
    >>> row.inputs.shape, int(row.segments.sum()) < 48, FSDDConfig(target='speaker').output_size
    ((48, 40), True, 6)
    """

    kind: ClassVar[str] = 'continuous'
    splits: ClassVar[tuple[str, ...]] = (TEST,)
    origin: ClassVar[str] = 'fsdd_1500.npz, from the repository Jakobovski/free-spoken-digit-dataset'

    target: str = 'digit'
    mels: int = 40
    frames: int = 48
    recordings: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in TARGETS:
            raise ValueError(f'target={self.target!r} must be one of {", ".join(TARGETS)}')
        for name in ('mels', 'frames', 'recordings'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}={value} must be at least 1')

    @property
    def input_size(self) -> int:
        return self.mels

    @property
    def classes(self) -> int:
        return TARGETS[self.target]

    def make(self) -> dict[str, ClassRows]:
        made = make_recordings()
        return self._rows(dataclasses.replace(made, index=made.index + HELD_OUT - 2))  # two of eight are held out

    def read(self) -> dict[str, ClassRows]:
        return self._rows(self.recorded())

    def recorded(self) -> Recordings:
        """The sounds of the file, for what hears them in another way."""
        names = ('delta_lo', 'delta_hi', 'offsets', 'digit', 'speaker', 'index')
        low, high, offsets, digit, speaker, index = self.arrays(self.find(), *names)
        if not len(digit) == len(speaker) == len(index) == len(offsets) - 1 or offsets[-1] != len(low):
            raise ValueError(f'data.path={self.path}: offsets must hold where each recording begins, and the end')
        difference = low.astype(np.uint16) | high.astype(np.uint16) << 8
        samples = np.cumsum(difference, dtype=np.uint16).view(np.int16) / 2**15
        sounds = [samples[first:last] for first, last in itertools.pairwise(offsets)]
        return Recordings(sounds, digit, speaker, index)

    def _rows(self, recordings: Recordings) -> dict[str, ClassRows]:
        frames = []
        for sound in recordings.sounds:
            own = log_mel(sound, self.mels)
            frames.append(((own - own.mean()) / max(own.std(), 1e-6)).astype(np.float32))
        rows = ClassRows.of(frames, getattr(recordings, self.target), self.frames)
        train = np.flatnonzero(recordings.index >= HELD_OUT)
        if self.recordings is not None:
            pair = SPEAKERS * recordings.digit.astype(int) + recordings.speaker
            train = train[rank_in_class(pair[train]) < self.recordings]
        return {TRAIN: rows.pick(train), TEST: rows.pick(recordings.index < HELD_OUT)}

    def tiny(self) -> Self:
        """A copy with short rows."""
        return dataclasses.replace(self, mels=16, frames=40)
