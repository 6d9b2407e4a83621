"""In-context regression of simple functions: a function is new in every prompt, its points come one after another.

    inputs = x_0 (y_0, 0 .. 0) x_1 (y_1, 0 .. 0) ... x_{S-1} (y_{S-1}, 0 .. 0)       2S tokens of F numbers
    x_i ~ N(0, I)       y_i = f(x_i) + N(0, sigma^2)       target at x_i: y_i, having seen i examples

The testbed of Garg et al. (2022), "What Can Transformers Learn In-Context?": linear, sparse linear and quadratic
functions, networks, decision trees (`regression_functions`). A prompt is a regression of every length at once: only the
even places are read, that of x_0 included. Errors are divided by the variance of f, so that a predictor of 0 scores 1.

- `pool`: functions are drawn, with replacement, from M fixed ones, as in Raventos et al. (2023). Function m of the pool
  is a function of the seed and m, so that a pool of any size takes no memory.
- `shift`: prompts that training did not show, for evaluation (`regression_shifts`).
- `curriculum`: `sample_at` a step has fewer coordinates and scores fewer points (`curriculum`); `sample` draws the full
  task.

Choices. The loss is against y_i, error curves are against f(x_i), as in Raventos: those of Garg are higher by sigma^2
over the normaliser. In a curriculum a prompt keeps its length and late points are not scored; to a causal model that is
a shorter prompt. Functions of a pool are those of the full task throughout. Linear classification, which has a loss of
its own, is `linear_classification`; the baselines that train or grow trees are left out.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jattn.config import nearest
from jattn.nn.losses import Mean, squared_error
from jattn.testbeds import regression_solvers as solvers
from jattn.testbeds.curriculum import Curriculum, Step
from jattn.testbeds.points import at_points, interleave, split_points
from jattn.testbeds.regression_functions import FUNCTIONS, Params, Sizes
from jattn.testbeds.regression_shifts import SHIFTS, shifted_points
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Int32, Key

LASSO_PENALTY = 0.01  # the one of the published figure
POOLS = 2**31 - 2  # folded into the root key of pools: no step of a run with the same seed has that key
NO_NOISE = 1e-6  # the variance that stands for none in the posterior over a pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """One function a prompt.

    Attributes:
        function: the class of functions, a name of `FUNCTIONS`.
        dim: F, coordinates of x.
        points: S; a prompt has 2 S tokens.
        noise: sigma, the deviation of the labels' noise.
        support: coordinates that a sparse function reads.
        hidden: units of a network.
        depth: of a tree.
        pool: M, how many functions there are; 0: every prompt has a new one.
        pool_seed: which pool.
        shift: a name of `SHIFTS`.
        curriculum: how the task grows with the step; None: it does not.

    >>> batch = Regression(dim=2, points=2).sample(jax.random.key(0), 1)
    >>> batch.inputs.shape, batch.mask.tolist()
    ((1, 4, 2), [[1.0, 0.0, 1.0, 0.0]])
    >>> float(batch.inputs[0, 1, 0]) == float(batch.targets[0, 0, 0])
    True
    >>> {name: round(value, 4) for name, value in Regression().facts().items()}      # doctest: +NORMALIZE_WHITESPACE
    {'normaliser': 5.0, 'floor': 0.0, 'label_variance': 5.0, 'zero': 1.0,
     'averaging_at_half_dim': 3.0, 'least_squares_at_half_dim': 0.6,
     'averaging_at_dim': 1.2, 'least_squares_at_dim': 0.0,
     'averaging_at_twice_dim': 0.6, 'least_squares_at_twice_dim': 0.0}
    """

    kind: ClassVar[str] = 'continuous'
    output_size: ClassVar[int] = 1

    function: str = 'linear'
    dim: int = 5
    points: int = 11
    noise: float = 0.0
    support: int = 3
    hidden: int = 100
    depth: int = 4
    pool: int = 0
    pool_seed: int = 0
    shift: str = 'none'
    curriculum: Curriculum | None = None

    def __post_init__(self) -> None:
        for name, table in (('function', FUNCTIONS), ('shift', SHIFTS)):
            value = getattr(self, name)
            if value not in table:
                raise ValueError(f'Regression: {name} is {value!r}, which does not exist; {nearest(value, table)}')
        for name in ('dim', 'points', 'support', 'hidden', 'depth'):
            if getattr(self, name) < 1:
                raise ValueError(f'Regression: {name} is {getattr(self, name)}, but it must be at least 1')
        for name in ('noise', 'pool', 'pool_seed'):
            if getattr(self, name) < 0:
                raise ValueError(f'Regression: {name} is {getattr(self, name)}, but it must not be negative')
        if self.function == 'sparse_linear' and self.support > self.dim:
            raise ValueError(f'Regression: support is {self.support}, but it must not exceed dim = {self.dim}')
        self._check_shift()
        self._check_curriculum()

    def _check_shift(self) -> None:
        where = f'Regression: shift is {self.shift!r}, but'
        if self.shift in ('none', 'fresh_functions'):
            if self.shift != 'none' and not self.pool:
                raise ValueError(f'{where} pool is 0: all functions are fresh')
            return
        if self.function != 'linear':
            raise ValueError(f'{where} function is {self.function!r}: it is a shift of linear functions')
        if self.shift == 'half_subspace' and self.dim < 2:
            raise ValueError(f'{where} dim is {self.dim}: half of it must be at least 1')
        if self.shift == 'orthogonal_query' and self.points > self.dim:
            raise ValueError(f'{where} points is {self.points}: it must not exceed dim = {self.dim}')
        if self.shift == 'noisy_labels' and self.noise:
            raise ValueError(f'{where} noise is {self.noise}: the shift brings its own, set noise to 0')

    def _check_curriculum(self) -> None:
        if self.curriculum is None:
            return
        for name in ('dims', 'points'):
            end, full = getattr(self.curriculum, name).end, self.dim if name == 'dims' else self.points
            if end != full:
                raise ValueError(f'Regression: curriculum.{name} ends at {end}, but the full task has {full}')
        if self.function == 'sparse_linear' and self.support > self.curriculum.dims.start:
            raise ValueError(
                f'Regression: support is {self.support}, but it must not exceed curriculum.dims.start = '
                f'{self.curriculum.dims.start}: the support lies in the coordinates that are not 0'
            )
        if self.shift != 'none':
            raise ValueError(f'Regression: shift is {self.shift!r}, but shifts are of the full task: set no curriculum')

    @property
    def input_size(self) -> int:
        return self.dim

    @property
    def sizes(self) -> Sizes:
        """What the classes of functions read."""
        return Sizes(self.dim, self.support, self.hidden, self.depth)

    @property
    def variance(self) -> float:
        """E f(x)^2 with no shift."""
        return FUNCTIONS[self.function].variance(self.sizes)

    @property
    def normaliser(self) -> float:
        """What errors are divided by: the variance of f, times the square of what a shift scales it by."""
        return self.variance * (SHIFTS[self.shift].x_scale * SHIFTS[self.shift].y_scale) ** 2

    @property
    def deviation(self) -> float:
        """sigma, the task's or the shift's."""
        return SHIFTS[self.shift].noise or self.noise

    @property
    def label_scale(self) -> float:
        """What a shift multiplies f + noise by, to bring its variance back to that of f."""
        return (self.variance / (self.variance + self.deviation**2)) ** 0.5 if SHIFTS[self.shift].noise else 1.0

    @property
    def marks(self) -> dict[str, int]:
        """Numbers of examples that scalar metrics and facts are given at."""
        places = {'half_dim': self.dim // 2, 'dim': self.dim, 'twice_dim': 2 * self.dim}
        return {name: place for name, place in places.items() if 0 < place < self.points}

    def sample(self, key: Key, batch: int) -> Batch:
        """Draws rows of the full task."""
        return self._draw(key, batch, self.dim, self.points)

    def sample_at(self, key: Key, batch: int, step: Step) -> Batch:
        """Draws rows as they are at a step of training, which may be traced; after the curriculum those of `sample`."""
        if self.curriculum is None:
            return self.sample(key, batch)
        return self._draw(key, batch, self.curriculum.dims(step), self.curriculum.points(step))

    def _draw(self, key: Key, batch: int, dims: int | Int32[Array, ''], points: int | Int32[Array, '']) -> Batch:
        """Rows whose first `dims` coordinates are not 0 and whose first `points` points are scored."""
        function_key, point_key, noise_key = jax.random.split(key, 3)
        shift, function = SHIFTS[self.shift], FUNCTIONS[self.function]
        x, is_shown, is_scored = shifted_points(point_key, shift, batch, self.points, self.dim)
        x = jnp.where((jnp.arange(self.dim) < dims)[None, None], x, 0)
        if self.pool and not shift.fresh:
            drawn = self._pool_functions(jax.random.randint(function_key, (batch,), 0, self.pool, jnp.int32))
        else:
            keys = jax.random.split(function_key, batch)
            drawn = jax.vmap(lambda one: function.draw(one, self.sizes, dims))(keys)
        noiseless = shift.y_scale * self.label_scale * jax.vmap(function.value)(drawn, x)
        noise = self.label_scale * self.deviation * jax.random.normal(noise_key, noiseless.shape)
        y = jnp.where(is_shown, noiseless + noise, 0)
        is_scored = is_scored & (jnp.arange(self.points) < points)[None]
        return Batch(
            inputs=interleave(x, y),
            targets=at_points(jnp.where(is_scored, y, 0)),
            mask=at_points(is_scored.astype(y.dtype))[:, :, 0],
            meta={'noiseless': noiseless},
        )

    def _pool_functions(self, numbers: Int32[Array, 'C']) -> Params:
        """Functions of the pool, by their numbers."""
        root = jax.random.fold_in(jax.random.key(self.pool_seed), POOLS)
        draw = FUNCTIONS[self.function].draw
        return jax.vmap(lambda number: draw(jax.random.fold_in(root, number), self.sizes, self.dim))(numbers)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error against the labels, of all scored points."""
        return squared_error(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The loss; errors against f by number of examples [S], and at F/2, F, 2F; distances to the baselines.

        All but the loss are divided by `normaliser`, which is F for linear functions.
        """
        is_scored = batch.mask[:, ::2]
        error = jnp.square(outputs[:, ::2, 0] - batch.meta['noiseless']) / self.normaliser
        curve = Mean.of(error, is_scored, axis=0)
        metrics = {'loss': self.loss(outputs, batch), 'error_by_point': curve}
        metrics |= {f'error_at_{name}': Mean(curve.total[i], curve.count[i]) for name, i in self.marks.items()}
        for name, predictions in self.baselines(batch).items():
            distance = jnp.square(outputs - predictions)[:, ::2, 0] / self.normaliser
            metrics[f'distance/{name}'] = Mean.of(distance, is_scored)
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """What the reference algorithms say at every point, from the points before it."""
        x, y = split_points(batch.inputs)
        found = {
            'zero': jnp.zeros_like(y),
            'averaging': solvers.averaging(x, y),
            'three_nearest': solvers.neighbours(x, y, 3),
            'least_squares': solvers.least_squares(x, y),
        }
        if self.deviation:
            found['ridge'] = solvers.ridge(x, y, self.deviation**2)
        if self.function == 'sparse_linear':
            found['lasso'] = solvers.lasso(x, y, LASSO_PENALTY)
        if self.pool:
            variance = max(self.deviation**2, NO_NOISE)
            found['pool_average'] = solvers.pool_average(lambda numbers: self._says(numbers, x), y, self.pool, variance)
        return {name: at_points(values) for name, values in found.items()}

    def _says(self, numbers: Int32[Array, 'C'], x: Float[Array, 'B S F']) -> Float[Array, 'B S C']:
        """The values of functions of the pool at all points."""
        of_rows = jax.vmap(FUNCTIONS[self.function].value, in_axes=(None, 0))
        return jax.vmap(of_rows, in_axes=(0, None), out_axes=-1)(self._pool_functions(numbers), x)

    def facts(self) -> dict[str, float]:
        """Variances; the loss of knowing f; exact errors of linear functions, new in every prompt and not shifted.

        With i examples, in units of the normaliser V: averaging (F+1)/i + F sigma^2/(i V), least squares
        1 - i/F + sigma^2/V i/(F-i-1) for i < F - 1 and sigma^2/V F/(i-F-1) for i > F + 1; between them its error has no
        mean, unless there is no noise: then it is max(1 - i/F, 0).
        """
        scale = self.label_scale**2
        facts = {'normaliser': self.normaliser, 'floor': scale * self.deviation**2}
        if self.pool and self.shift != 'fresh_functions':
            return facts
        facts |= {'label_variance': scale * self.normaliser + facts['floor'], 'zero': scale}
        if self.function not in ('linear', 'sparse_linear') or self.shift not in ('none', 'fresh_functions'):
            return facts
        noise = self.deviation**2 / self.normaliser
        for name, i in self.marks.items():
            facts[f'averaging_at_{name}'] = (self.dim + 1) / i + self.dim * noise / i
            if not noise or abs(i - self.dim) > 1:
                grown = min(i, self.dim) / (abs(self.dim - i) - 1) if noise else 0.0
                facts[f'least_squares_at_{name}'] = max(1 - i / self.dim, 0.0) + noise * grown
        return facts

    def tiny(self) -> 'Regression':
        points = 9 if self.points > self.dim else 4
        return dataclasses.replace(
            self,
            dim=4,
            points=points,
            support=min(self.support, 2),
            hidden=min(self.hidden, 8),
            depth=min(self.depth, 2),
            pool=min(self.pool, 8),
            curriculum=self.curriculum and self.curriculum.tiny(4, points),
        )
