"""Long videos in which little happens: a digit moves over the canvas a few times, the rest is drifting noise.

    E events, one in each of E equal parts of the video, `event_frames` frames long, at a random time
    frame = noise (a random texture that drifts by a pixel a frame) + in an event a digit on its way
    label = the class of the first event's digit, times the classes, + the class of the last one's

Everything between the two ends is noise or other digits: the answer needs the whole video, and a few of its frames. A
frame is cut into patches, each a token, in raster order. The digits are handed in as images (`glyphs`), so that a test
needs no file; `patterns` makes some.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jattn.testbeds.task import Batch
from jattn.typing import Array, Float, Int32, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingDigits:
    """The sizes of a video.

    Attributes:
        frames: of a video.
        canvas: pixels of a side.
        patch: pixels of a token's side; divides the canvas.
        events: the fewest and the most.
        event_frames: of an event.
        classes: of the digits.
        noise: standard deviation of the texture.

    >>> task = MovingDigits(frames=16, canvas=8, patch=4, events=(2, 2), event_frames=2, classes=3)
    >>> batch = task.sample(jax.random.key(0), 5, *patterns(3, 4))
    >>> batch.inputs.shape, batch.targets.shape, task.outputs, batch.meta['eventful'].sum(axis=1).tolist()
    ((5, 64, 16), (5,), 9, [16, 16, 16, 16, 16])
    """

    frames: int = 64
    canvas: int = 16
    patch: int = 8
    events: tuple[int, int] = (4, 6)
    event_frames: int = 3
    classes: int = 10
    noise: float = 0.3

    def __post_init__(self) -> None:
        if self.canvas % self.patch:
            raise ValueError(f'MovingDigits: canvas={self.canvas} must be a multiple of patch={self.patch}')
        fewest, most = self.events
        if not 2 <= fewest <= most or most * self.event_frames > self.frames:
            raise ValueError(f'MovingDigits: events={self.events} must be at least 2 and fit in frames={self.frames}')

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns), tokens of a frame."""
        return (self.canvas // self.patch,) * 2

    @property
    def tokens(self) -> int:
        """T."""
        return self.frames * self.grid[0] ** 2

    @property
    def outputs(self) -> int:
        """Labels: ordered pairs of classes."""
        return self.classes**2

    def sample(self, key: Key, batch: int, glyphs: Float[Array, 'N Y X'], classes: Int32[Array, 'N']) -> Batch:
        """Draws videos of digits picked from `glyphs`; `meta['eventful']` [B, T] are the tokens of frames with one."""
        keys = jax.random.split(key, 5)
        most = self.events[1]
        events = jax.random.randint(keys[0], (batch,), self.events[0], most + 1)
        picked = jax.random.randint(keys[1], (batch, most), 0, len(glyphs))
        of_frame, since = self._timetable(keys[2], events)
        frames = self._noise(keys[3], batch) + self._moving(keys[4], glyphs[picked], of_frame, since)
        first, last = classes[picked[:, 0]], jnp.take_along_axis(classes[picked], events[:, None] - 1, axis=1)[:, 0]
        return Batch(
            inputs=self.cut(frames),
            targets=(first * self.classes + last).astype(jnp.int32),
            mask=jnp.ones(batch, jnp.float32),
            meta={'eventful': jnp.repeat(of_frame >= 0, self.grid[0] ** 2, axis=1)},
        )

    def _timetable(self, key: Key, events: Int32[Array, 'B']) -> tuple[Int32[Array, 'B N'], Int32[Array, 'B N']]:
        """Which event every frame belongs to, -1: none, and how many frames after its start."""
        frame = jnp.arange(self.frames)[None]
        own = frame * events[:, None] // self.frames  # the part of the video that a frame is in
        each = jnp.arange(self.events[1])[None]
        begins = -(-each * self.frames // events[:, None])
        room = -(-(each + 1) * self.frames // events[:, None]) - begins - self.event_frames
        starts = begins + jnp.floor(jax.random.uniform(key, begins.shape) * (room + 1)).astype(jnp.int32)
        since = frame - jnp.take_along_axis(starts, own, axis=1)
        inside = (since >= 0) & (since < self.event_frames)
        return jnp.where(inside, own, -1), jnp.where(inside, since, 0)

    def _moving(self, key: Key, glyphs: Array, of_frame: Array, since: Array) -> Float[Array, 'B N Y X']:
        """The frames' digits: each goes by at most a pixel a frame, within the canvas."""
        side, (batch, most) = glyphs.shape[-1], glyphs.shape[:2]
        start_key, speed_key = jax.random.split(key)
        room = self.canvas - side
        starts = jax.random.randint(start_key, (batch, most, 2), 0, room + 1)
        speeds = jax.random.randint(speed_key, (batch, most, 2), -1, 2)
        event = jnp.maximum(of_frame, 0)
        at = lambda a: jnp.take_along_axis(a, event.reshape(*event.shape, *[1] * (a.ndim - 2)), axis=1)
        places = jnp.clip(at(starts) + at(speeds) * since[..., None], 0, room)
        padded = jnp.pad(at(glyphs), ((0, 0), (0, 0), (0, room), (0, room)))
        # Cyclic moves do not wrap: a digit has room behind it.
        moved = jax.vmap(jax.vmap(lambda image, place: jnp.roll(image, place, axis=(0, 1))))(padded, places)
        return jnp.where((of_frame >= 0)[..., None, None], moved, 0)

    def _noise(self, key: Key, batch: int) -> Float[Array, 'B N Y X']:
        """A texture of the canvas' size that drifts, cyclically, by a pixel a frame, a new one for every video."""
        texture_key, speed_key = jax.random.split(key)
        texture = jax.random.normal(texture_key, (batch, self.canvas, self.canvas))
        near = texture + jnp.roll(texture, 1, axis=1) + jnp.roll(texture, 1, axis=2) + jnp.roll(texture, (1, 1), (1, 2))
        speeds = jax.random.randint(speed_key, (batch, 2), -1, 2)
        drift = lambda image, speed: jax.vmap(lambda t: jnp.roll(image, t * speed, axis=(0, 1)))(
            jnp.arange(self.frames)
        )
        return self.noise / 2 * jax.vmap(drift)(near, speeds)

    def cut(self, frames: Float[Array, 'B N Y X']) -> Float[Array, 'B T P']:
        """The frames as tokens."""
        rows, columns = self.grid
        x = frames.reshape(*frames.shape[:2], rows, self.patch, columns, self.patch)
        return x.transpose(0, 1, 2, 4, 3, 5).reshape(len(frames), -1, self.patch**2)


def clip(
    frames_of: Float[Array, 'B T P'], start: Int32[Array, 'B'], frames: int, stride: int, each: int
) -> Float[Array, 'B U P']:
    """Every `stride`-th frame from `start` on, `frames` of them; a frame has `each` tokens.

    >>> video = jnp.arange(12.0).reshape(1, 12, 1)
    >>> clip(video, jnp.array([1]), 2, 3, 2).ravel().tolist()
    [2.0, 3.0, 8.0, 9.0]
    """
    video = frames_of.reshape(len(frames_of), -1, each, frames_of.shape[-1])
    chosen = start[:, None] + stride * jnp.arange(frames)[None]
    taken = jnp.take_along_axis(video, chosen[:, :, None, None], axis=1)
    return taken.reshape(len(video), -1, video.shape[-1])


def patterns(classes: int, side: int, seed: int = 0) -> tuple[Float[Array, 'N Y X'], Int32[Array, 'N']]:
    """Glyphs without a file: one random pattern of bits a class."""
    bits = jax.random.bernoulli(jax.random.key(seed), 0.5, (classes, side, side))
    return bits.astype(jnp.float32), jnp.arange(classes, dtype=jnp.int32)
