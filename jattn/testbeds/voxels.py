"""Scenes of voxels, as a lidar sees a street: what is each voxel a part of? The ground, a box, a cylinder or a pole.

    a scene     N objects stand on the ground of a grid (z, y, x), at random places, of random sizes; where two overlap
                in the plan the later one stands
    a surface   walls (an object's voxels beside another object or the ground), roofs, and the ground around objects
    a voxel     is seen with probability min(1, (reach / r)^2), r its distance in the plan from the scene's middle
    a token     a seen voxel; tokens are sorted by window, a square of the plan, and padded at the end

`Batch.segments` are the windows, 1 + (y // window) n + x // window with n windows along x, 0 for padding;
`Batch.context['coordinates']` the places (z, y, x). Where more voxels are seen than a row has tokens, the least likely
of them are left out. Inputs are the height, the place inside the window, both in -1..1, and the log of the probability
to be seen: nothing of the scene, so that a class shows in the neighbours alone. An object is cut where it stands in
several windows; `accuracy_cut` and `accuracy_whole` are those of the voxels of objects, mean IoU is that of the four
`iou_CLASS`, each intersection over union of all rows.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import certain_logits
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Bool, Float, Int32, Key

CLASSES = ('ground', 'box', 'cylinder', 'pole')
GROUND, BOX, CYLINDER, POLE = range(4)
EMPTY = -1


@struct.dataclass
class Objects:
    """What stands in a scene; the kinds are the task's.

    Attributes:
        center: [N, 2], (y, x).
        half: [N, 2], half of the sides of a box, (y, x); of the others the radius, twice.
        height: [N] int32, voxels.
    """

    center: Float[Array, 'N 2']
    half: Float[Array, 'N 2']
    height: Int32[Array, 'N']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voxels(Task):
    """The class of every voxel of a scene.

    Attributes:
        grid: voxels along z, y and x.
        window: voxels of a window's side in the plan.
        tokens: T of a row.
        boxes, cylinders, poles: of a scene.
        reach: the distance in voxels within which all is seen.
        sides: the least and the largest half side or radius of boxes and cylinders.

    >>> batch = Voxels().tiny().sample(jax.random.key(0), 2)
    >>> batch.inputs.shape, batch.context['coordinates'].shape, batch.segments[0, :3].tolist()
    ((2, 64, 4), (2, 64, 3), [1, 1, 1])
    """

    kind: ClassVar[str] = 'continuous'

    grid: tuple[int, int, int] = (6, 48, 48)
    window: int = 8
    tokens: int = 1024
    boxes: int = 4
    cylinders: int = 4
    poles: int = 6
    reach: float = 7.0
    sides: tuple[float, float] = (1.5, 4.0)

    def __post_init__(self) -> None:
        if len(self.grid) != 3 or min(self.grid) < 2:
            raise ValueError(f'Voxels: grid={self.grid} must be at least 2 voxels along z, y and x')
        for name in ('window', 'tokens'):
            if getattr(self, name) < 1:
                raise ValueError(f'Voxels: {name}={getattr(self, name)} must be at least 1')
        if min(self.boxes, self.cylinders, self.poles) < 0:
            counts = f'boxes={self.boxes}, cylinders={self.cylinders}, poles={self.poles}'
            raise ValueError(f'Voxels: {counts} must not be negative')
        if self.reach <= 0 or not 0 < self.sides[0] <= self.sides[1]:
            raise ValueError(f'Voxels: reach={self.reach} and sides={self.sides} must be positive, sides in order')
        if self.tokens > math.prod(self.grid):
            raise ValueError(
                f'Voxels: tokens={self.tokens} are more than the {math.prod(self.grid)} voxels of {self.grid}'
            )

    @property
    def input_size(self) -> int:
        return 4

    @property
    def output_size(self) -> int:
        return len(CLASSES)

    @property
    def kinds(self) -> tuple[int, ...]:
        """The class of each object."""
        return (BOX,) * self.boxes + (CYLINDER,) * self.cylinders + (POLE,) * self.poles

    def sample(self, key: Key, batch: int) -> Batch:
        return jax.vmap(self._scene)(jax.random.split(key, batch))

    def _scene(self, key: Key) -> Batch:
        """One row, without the axis of the batch."""
        object_key, seen_key = jax.random.split(key)
        objects = draw_objects(self, object_key)
        classes, owner = scene(self, objects)
        chance = jnp.asarray(self._chance())
        # Seen where a uniform number is below the chance; of too many, the smallest numbers over their chance stay.
        rank = jnp.where(classes == EMPTY, jnp.inf, jax.random.uniform(seen_key, self.grid) / chance[None])
        least, place = jax.lax.top_k(-rank.reshape(-1), self.tokens)
        place = place.astype(jnp.int32)
        at = jnp.stack(jnp.unravel_index(place, self.grid), axis=-1).astype(jnp.int32)
        across = -(-self.grid[2] // self.window)
        window = jnp.where(-least < 1, 1 + at[:, 1] // self.window * across + at[:, 2] // self.window, 0)

        last = 1 + -(-self.grid[1] // self.window) * across
        order = jnp.lexsort((place, jnp.where(window > 0, window, last)))
        at, window = at[order], window[order]
        real = window > 0
        at = jnp.where(real[:, None], at, 0)
        z, y, x = at[:, 0], at[:, 1], at[:, 2]
        return Batch(
            inputs=jnp.where(real[:, None], self._features(at, chance[y, x]), 0),
            targets=jnp.where(real, classes[z, y, x], 0),
            mask=real.astype(jnp.float32),
            segments=window,
            context={'coordinates': at},
            meta={'objects': objects, 'cut': real & (owner[y, x] >= 0) & self._is_cut(objects)[owner[y, x]]},
        )

    def _chance(self) -> Float[np.ndarray, 'Y X']:
        """The probability to be seen, by place in the plan."""
        y, x = (np.arange(size) - (size - 1) / 2 for size in self.grid[1:])
        squared = np.maximum(y[:, None] ** 2 + x[None] ** 2, 1e-6)
        return np.minimum(1, self.reach**2 / squared).astype(np.float32)

    def _features(self, at: Int32[Array, 'T 3'], chance: Float[Array, 'T']) -> Float[Array, 'T F']:
        unit = lambda number, size: 2 * number / max(size - 1, 1) - 1
        inside = (unit(at[:, axis] % self.window, self.window) for axis in (1, 2))
        return jnp.stack([unit(at[:, 0], self.grid[0]), *inside, jnp.log(chance)], axis=-1)

    def _is_cut(self, objects: Objects) -> Bool[Array, 'N']:
        """Whether an object reaches into several windows."""
        limit = jnp.array(self.grid[1:])[None] - 1
        first = jnp.clip(jnp.ceil(objects.center - objects.half), 0, limit)
        last = jnp.clip(jnp.floor(objects.center + objects.half), 0, limit)
        return jnp.any(first // self.window != last // self.window, axis=-1)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the class, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, accuracy_cut and accuracy_whole of objects, iou_CLASS."""
        found, real = jnp.argmax(outputs, axis=-1), batch.mask > 0
        right = (found == batch.targets).astype(jnp.float32)
        cut, is_object = batch.meta['cut'], batch.targets != GROUND
        metrics = {
            'loss': self.loss(outputs, batch),
            'accuracy': Mean.of(right, real),
            'accuracy_cut': Mean.of(right, real & is_object & cut),
            'accuracy_whole': Mean.of(right, real & is_object & ~cut),
        }
        for number, name in enumerate(CLASSES):
            says, is_one = found == number, batch.targets == number
            metrics[f'iou_{name}'] = Mean.of((says & is_one).astype(jnp.float32), real & (says | is_one))
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits: geometry, which knows the objects."""
        classes, _ = jax.vmap(lambda objects: scene(self, objects))(batch.meta['objects'])
        z, y, x = jnp.moveaxis(batch.context['coordinates'], -1, 0)
        answers = classes[jnp.arange(len(classes))[:, None], z, y, x]
        return {'geometry': certain_logits(jnp.maximum(answers, 0), len(CLASSES))}

    def facts(self) -> dict[str, float]:
        """The loss of who knows the objects, and guessing."""
        return {'geometry': 0.0, 'chance_loss': math.log(len(CLASSES)), 'chance_accuracy': 1 / len(CLASSES)}

    def tiny(self) -> 'Voxels':
        return dataclasses.replace(  # the grid that mixers over scenes have when they are tiny
            self, grid=(2, 8, 8), window=4, tokens=64, boxes=1, cylinders=1, poles=2, reach=2.0, sides=(1.0, 2.0)
        )


def draw_objects(task: Voxels, key: Key) -> Objects:
    """The objects of a scene, uniform places and sizes; a pole is one voxel wide.

    >>> objects = draw_objects(Voxels().tiny(), jax.random.key(0))
    >>> objects.center.shape, objects.half[-1].tolist()
    ((4, 2), [0.5, 0.5])
    """
    center_key, half_key, height_key = jax.random.split(key, 3)
    kinds, count = np.array(task.kinds)[:, None], len(task.kinds)
    least, most = task.sides
    half = jax.random.uniform(half_key, (count, 2), minval=least, maxval=most)
    half = jnp.where(kinds == BOX, half, half[:, :1])
    size = jnp.array(task.grid[1:], jnp.float32)[None]
    return Objects(
        center=jax.random.uniform(center_key, (count, 2)) * size - 0.5,
        half=jnp.where(kinds == POLE, 0.5, half),
        height=jax.random.randint(height_key, (count,), min(2, task.grid[0]), task.grid[0] + 1, jnp.int32),
    )


def scene(task: Voxels, objects: Objects) -> tuple[Int32[Array, 'Z Y X'], Int32[Array, 'Y X']]:
    """The class of each voxel, -1 where nothing is to be seen, the object on each place of the plan, -1 for none."""
    y, x = (jnp.arange(size, dtype=jnp.float32) for size in task.grid[1:])
    away_y = jnp.abs(y[None, :, None] - objects.center[:, 0, None, None]) / objects.half[:, 0, None, None]
    away_x = jnp.abs(x[None, None, :] - objects.center[:, 1, None, None]) / objects.half[:, 1, None, None]
    kinds = jnp.array(task.kinds)
    is_round = (kinds == CYLINDER)[:, None, None]
    on = jnp.where(is_round, away_y**2 + away_x**2 <= 1, jnp.maximum(away_y, away_x) <= 1)
    owner = jnp.max(jnp.where(on, jnp.arange(len(kinds), dtype=jnp.int32)[:, None, None], EMPTY), axis=0)

    around = jnp.pad(owner, 1, mode='edge')
    sides = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    is_edge = jnp.any(jnp.stack([side != owner for side in sides]), axis=0)[None]
    z, top = jnp.arange(task.grid[0])[:, None, None], objects.height[owner][None] - 1
    surface = ((z <= top) & is_edge) | (z == top)
    of_object = jnp.where((owner >= 0)[None] & surface, kinds[owner][None], EMPTY)
    return jnp.where((owner < 0)[None] & (z == 0), GROUND, of_object).astype(jnp.int32), owner
