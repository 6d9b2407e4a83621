"""In-context linear regression: predict a query's label from labelled examples whose weights are new in every prompt.

    w ~ N(0, I/F)    x_s, x_q ~ N(shift 1, Sigma), Sigma_ij = correlation^|i-j|    y = w . x + N(0, sigma^2)
    inputs = (x_1, y_1) ... (x_S, y_S) (x_q, 0)         target at the last token: y_q

Joined tokens, as in "In-Context Linear Regression Demystified" and the literature on linear attention; the query's
label is as noisy as the examples', so sigma^2 is the floor of every score. There are no positions to read: a predictor
should not depend on the order of the examples. A target stands at every token (zeros, not counted), so that any
sequence model can be scored. `icl_linear_multitask` has the form with several regressions in one prompt.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, squared_error
from jattn.testbeds import icl_linear_estimators as estimators
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key, axis_sizes


def make_prompts(x: Float[Array, 'B S+1 F'], y: Float[Array, 'B S+1 N'], meta: dict[str, Array] | None = None) -> Batch:
    """Joins covariates and labels into a batch; the last token is the query, its labels are the only targets.

    >>> batch = make_prompts(jnp.ones((1, 3, 2)), jnp.array([[[4.0], [5.0], [6.0]]]))
    >>> batch.inputs[0].tolist(), batch.targets[0, :, 0].tolist(), batch.mask[0].tolist()
    ([[1.0, 1.0, 4.0], [1.0, 1.0, 5.0], [1.0, 1.0, 0.0]], [0.0, 0.0, 6.0], [0.0, 0.0, 1.0])
    """
    axis_sizes('make_prompts', x=(x, 'B T F'), y=(y, 'B T N'))
    is_query = (jnp.arange(x.shape[1]) == x.shape[1] - 1).astype(x.dtype)
    shown = y * (1 - is_query)[None, :, None]
    return Batch(
        inputs=jnp.concatenate([x, shown], axis=-1),
        targets=y * is_query[None, :, None],
        mask=jnp.broadcast_to(is_query[None, :], x.shape[:2]),
        meta=meta or {},
    )


def split_prompts(
    inputs: Float[Array, 'B T D'], dim: int
) -> tuple[Float[Array, 'B S F'], Float[Array, 'B S N'], Float[Array, 'B F']]:
    """The inverse of the joining: the examples' covariates and labels, and the query's covariates (F = dim)."""
    return inputs[:, :-1, :dim], inputs[:, :-1, dim:], inputs[:, -1, :dim]


def at_query(predictions: Float[Array, 'B N'], tokens: int) -> Float[Array, 'B T N']:
    """Predictions of the query's labels, put at the last of `tokens` places; zeros elsewhere."""
    return jnp.pad(predictions[:, None, :], ((0, 0), (tokens - 1, 0), (0, 0)))


def solve_prompts(
    x: Float[Array, 'B S F'],
    y: Float[Array, 'B S'],
    query: Float[Array, 'B F'],
    plain: theory.Moments,
    debiased: theory.Moments,
    penalty: float,
) -> dict[str, Float[Array, 'B']]:
    """What every closed-form predictor says: gradient descent at its best steps, least squares, ridge (Bayes), zero.

    Args:
        x: the examples' covariates.
        y: the examples' labels.
        query: the query's covariates.
        plain: the moments that the best step of gradient descent follows from.
        debiased: the same for debiased gradient descent, with and without a pre-conditioner.
        penalty: ridge's; noise variance over the weights' prior variance makes it the Bayes predictor.
    """
    conditioner = theory.best_preconditioner(debiased)
    return {
        'zero': jnp.zeros(len(x), x.dtype),
        'gradient_descent': estimators.gradient_descent(x, y, query, theory.best_step(plain)),
        'debiased_gradient_descent': estimators.debiased_gradient_descent(x, y, query, theory.best_step(debiased)),
        'preconditioned_debiased_gradient_descent': estimators.debiased_gradient_descent(x, y, query, conditioner),
        'least_squares': estimators.least_squares(x, y, query),
        'ridge': estimators.ridge(x, y, query, penalty),
    }


def check_sizes(where: str, dim: int, context: int, noise_variance: float) -> None:
    """Raises a ValueError that names the field, its value and the rule."""
    if dim < 1:
        raise ValueError(f'{where}: dim is {dim}, but at least one covariate is needed')
    if context < 2:
        raise ValueError(f'{where}: context is {context}, but debiasing needs at least two examples')
    if noise_variance < 0:
        raise ValueError(f'{where}: noise_variance is {noise_variance}, but it must not be negative')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ICLLinear(Task):
    """One linear regression a prompt.

    Attributes:
        dim: covariates F (the paper's d).
        context: labelled examples S (the paper's L); a prompt has S + 1 tokens.
        noise_variance: sigma^2, of every label, the query's included.
        correlation: rho of the covariates' covariance Sigma_ij = rho^|i-j|; 0: isotropic.
        shift: mean of every covariate, of the examples and of the query.

    >>> batch = ICLLinear().sample(jax.random.key(0), 3)
    >>> batch.inputs.shape, batch.targets.shape
    ((3, 41, 6), (3, 41, 1))
    >>> {name: round(value, 4) for name, value in ICLLinear().facts().items()}      # doctest: +NORMALIZE_WHITESPACE
    {'floor': 0.1, 'zero': 1.1, 'gradient_descent': 0.2398, 'debiased_gradient_descent': 0.2429,
     'preconditioned_debiased_gradient_descent': 0.2429, 'least_squares': 0.1147, 'ridge_large_dim': 0.1141,
     'one_head_approximate': 0.3721}
    """

    kind: ClassVar[str] = 'continuous'

    dim: int = 5
    context: int = 40
    noise_variance: float = 0.1
    correlation: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_sizes('ICLLinear', self.dim, self.context, self.noise_variance)
        if not abs(self.correlation) < 1:
            raise ValueError(f'ICLLinear: correlation is {self.correlation}, but it must lie between -1 and 1')

    @property
    def input_size(self) -> int:
        return self.dim + 1

    @property
    def output_size(self) -> int:
        return 1

    @property
    def covariance(self) -> np.ndarray:
        """Sigma [F, F], float64."""
        places = np.arange(self.dim)
        return np.float64(self.correlation) ** np.abs(places[:, None] - places[None, :])

    @property
    def mean(self) -> np.ndarray:
        """The covariates' mean, [F], float64."""
        return np.full(self.dim, self.shift, np.float64)

    @functools.cached_property
    def plain_moments(self) -> theory.Moments:
        """What the exact risk of plain gradient descent follows from."""
        return theory.plain_moments(self.covariance, self.mean, self.context, self.noise_variance)

    @functools.cached_property
    def debiased_moments(self) -> theory.Moments:
        """What the exact risk of debiased gradient descent follows from."""
        return theory.debiased_moments(self.covariance, self.mean, self.context, self.noise_variance)

    def sample(self, key: Key, batch: int) -> Batch:
        weight_key, covariate_key, noise_key = jax.random.split(key, 3)
        weights = jax.random.normal(weight_key, (batch, self.dim)) / self.dim**0.5
        x = jax.random.normal(covariate_key, (batch, self.context + 1, self.dim))
        if self.correlation:
            x = x @ jnp.asarray(np.linalg.cholesky(self.covariance).T, x.dtype)
        x = x + self.shift
        noise = self.noise_variance**0.5 * jax.random.normal(noise_key, (batch, self.context + 1))
        y = jnp.einsum('btf,bf->bt', x, weights) + noise
        return make_prompts(x, y[:, :, None], meta={'weights': weights})

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error on the query's label."""
        return squared_error(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The squared error, and how far the outputs lie from every baseline (mean squared difference)."""
        distances = {
            f'distance/{name}': squared_error(outputs, predictions, batch.mask)
            for name, predictions in self.baselines(batch).items()
        }
        return {'loss': self.loss(outputs, batch), **distances}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Gradient descent at its best steps, least squares, and ridge, which is the Bayes predictor."""
        x, y, query = split_prompts(batch.inputs, self.dim)
        penalty = self.noise_variance * self.dim
        solved = solve_prompts(x, y[:, :, 0], query, self.plain_moments, self.debiased_moments, penalty)
        return {name: at_query(values[:, None], self.context + 1) for name, values in solved.items()}

    def facts(self) -> dict[str, float]:
        """Exact risks of the baselines; the two whose formula is a limit or an approximation say so in their names."""
        plain, debiased = self.plain_moments, self.debiased_moments
        facts = {
            'floor': self.noise_variance,
            'zero': theory.risk(plain, 0.0),
            'gradient_descent': theory.risk(plain, theory.best_step(plain)),
            'debiased_gradient_descent': theory.risk(debiased, theory.best_step(debiased)),
            'preconditioned_debiased_gradient_descent': theory.risk(debiased, theory.best_preconditioner(debiased)),
        }
        sizes = (self.dim, self.context, self.noise_variance)
        if not self.shift and self.context > self.dim + 1:
            facts['least_squares'] = theory.least_squares_risk(*sizes)
        if not self.shift and not self.correlation:
            facts['ridge_large_dim'] = theory.ridge_risk(*sizes)
            facts['one_head_approximate'] = float(theory.population_loss(*theory.one_head_optimum(*sizes), *sizes))
        return facts

    def tiny(self) -> 'ICLLinear':
        return dataclasses.replace(self, dim=2, context=8)
