"""Videos of few events: when they come, what they show, what the label says, and clips of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.moving_digits import MovingDigits, clip, patterns

TASK = MovingDigits(frames=32, canvas=8, patch=4, events=(2, 4), event_frames=3, classes=3, noise=0.0)
GLYPHS, CLASSES = patterns(3, 5)
BATCH = jax.jit(TASK.sample, static_argnums=1)(jax.random.key(0), 200, GLYPHS, CLASSES)


def frames():
    """[B, frames, Y, X], the inverse of cutting."""
    x = np.asarray(BATCH.inputs).reshape(200, 32, 2, 2, 4, 4)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(200, 32, 8, 8)


def test_events_are_as_many_and_as_long_as_said_and_nothing_else_is_seen():
    eventful = np.asarray(BATCH.meta['eventful']).reshape(200, 32, 4)
    assert np.all(eventful == eventful[:, :, :1])
    counts = eventful[:, :, 0].sum(axis=1)
    assert set(counts) == {6, 9, 12}
    assert np.all((np.abs(frames()).sum(axis=(2, 3)) > 0) == eventful[:, :, 0])


def test_the_label_is_the_first_and_the_last_digit():
    video, eventful = frames(), np.asarray(BATCH.meta['eventful'])[:, ::4]
    for row in range(20):
        times = np.flatnonzero(eventful[row])
        ends = [classes_seen(video[row, time]) for time in (times[0], times[-1])]
        assert int(BATCH.targets[row]) == ends[0] * 3 + ends[1]


def classes_seen(frame):
    """Which pattern stands somewhere on the canvas."""
    found = [
        digit
        for digit in range(3)
        for y in range(4)
        for x in range(4)
        if np.array_equal(frame[y : y + 5, x : x + 5], GLYPHS[digit]) and frame.sum() == GLYPHS[digit].sum()
    ]
    assert len(set(found)) == 1
    return found[0]


def test_labels_are_balanced():
    counts = np.bincount(np.asarray(BATCH.targets), minlength=9)
    error = (200 * 1 / 9 * 8 / 9) ** 0.5
    assert np.all(np.abs(counts - 200 / 9) < 4 * error)


def test_noise_has_its_deviation_and_drifts():
    task = MovingDigits(frames=16, canvas=8, patch=4, events=(2, 2), event_frames=1, noise=0.5)
    blank = jnp.zeros((1, 5, 5))
    noise = np.asarray(task.sample(jax.random.key(1), 100, blank, jnp.zeros(1, jnp.int32)).inputs)
    assert abs(noise.std() / 0.5 - 1) < 0.05
    energy = np.square(noise).reshape(100, 16, -1).sum(axis=2)
    np.testing.assert_allclose(energy, np.broadcast_to(energy[:, :1], energy.shape), rtol=1e-4)


def test_a_clip_takes_every_stride_th_frame():
    taken = clip(BATCH.inputs, jnp.arange(200) % 3, 8, 3, 4).reshape(200, 8, 4, 16)
    video = np.asarray(BATCH.inputs).reshape(200, 32, 4, 16)
    for row in (0, 1, 2):
        np.testing.assert_array_equal(taken[row], video[row, row % 3 :: 3][:8])


@pytest.mark.parametrize(
    'fields, message', [(dict(patch=3), 'multiple of patch=3'), (dict(events=(1, 2)), 'must be at least 2')]
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MovingDigits(**fields)
