"""Several in-context linear regressions in one prompt: each example carries one label for each of N tasks.

    w_n ~ N(0, I)    x_s, x_q ~ N(0, I) in F dimensions    y_n = w_n . x[support n] + N(0, K sigma^2)
    inputs = (x_1, y_1) ... (x_S, y_S) (x_q, 0), y in R^N          targets at the last token: w_n . x_q[support n]

Support n is a window of K = task_dim covariates; the windows are spread evenly over the F covariates and may overlap
(F = 6, K = 4, N = 2: covariates 0-3 and 2-5). The multi-task setting of "In-Context Linear Regression Demystified", in
which the heads of one attention layer serve one task each, or several at once when there are few of them.

Choices, as published: the weights' variance is 1 (not 1/K), the noise K sigma^2 is on the examples' labels only.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, squared_error
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.icl_linear import at_query, check_sizes, make_prompts, solve_prompts, split_prompts
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class ICLLinearMultitask(Task):
    """N linear regressions a prompt, on windows of the same covariates.

    Attributes:
        dim: covariates F.
        tasks: labels N of an example.
        task_dim: covariates K that a task reads.
        context: labelled examples S; a prompt has S + 1 tokens.
        noise_variance: sigma^2, relative to a label's own variance K.

    >>> task = ICLLinearMultitask()
    >>> task.starts, task.sample(jax.random.key(0), 3).inputs.shape
    ((0, 2), (3, 49, 8))
    >>> {name: round(value, 4) for name, value in task.facts().items()}
    {'floor': 0.0, 'zero': 4.0, 'gradient_descent': 0.4045, 'debiased_gradient_descent': 0.4122}
    """

    kind: ClassVar[str] = 'continuous'

    dim: int = 6
    tasks: int = 2
    task_dim: int = 4
    context: int = 48
    noise_variance: float = 0.1

    def __post_init__(self) -> None:
        check_sizes('ICLLinearMultitask', self.dim, self.context, self.noise_variance)
        if self.tasks < 1:
            raise ValueError(f'ICLLinearMultitask: tasks is {self.tasks}, but at least one is needed')
        if not 1 <= self.task_dim <= self.dim:
            raise ValueError(f'ICLLinearMultitask: task_dim is {self.task_dim}, but it must lie in 1..dim = {self.dim}')
        if (self.dim - self.task_dim) % max(self.tasks - 1, 1):
            raise ValueError(
                f'ICLLinearMultitask: dim - task_dim is {self.dim - self.task_dim}, but it must be a multiple of '
                f'tasks - 1 = {self.tasks - 1} (the windows are spread evenly)'
            )

    @property
    def input_size(self) -> int:
        return self.dim + self.tasks

    @property
    def output_size(self) -> int:
        return self.tasks

    @property
    def starts(self) -> tuple[int, ...]:
        """The first covariate of each task's window."""
        stride = (self.dim - self.task_dim) // max(self.tasks - 1, 1)
        return tuple(stride * n for n in range(self.tasks))

    @functools.cached_property
    def moments(self) -> tuple[theory.Moments, theory.Moments]:
        """Plain and debiased moments of one task, its labels divided by sqrt(K)."""
        sizes = (np.eye(self.task_dim), np.zeros(self.task_dim), self.context, self.noise_variance)
        return theory.plain_moments(*sizes), theory.debiased_moments(*sizes)

    def sample(self, key: Key, batch: int) -> Batch:
        weight_key, covariate_key, noise_key = jax.random.split(key, 3)
        tokens = self.context + 1
        weights = jax.random.normal(weight_key, (batch, self.tasks, self.task_dim))
        x = jax.random.normal(covariate_key, (batch, tokens, self.dim))
        windows = jnp.stack([x[:, :, start : start + self.task_dim] for start in self.starts], axis=2)
        noise = (self.task_dim * self.noise_variance) ** 0.5 * jax.random.normal(noise_key, (batch, tokens, self.tasks))
        noise = noise.at[:, -1].set(0)
        y = jnp.einsum('btnk,bnk->btn', windows, weights) + noise
        return make_prompts(x, y, meta={'weights': weights})

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Squared error on the query's labels, averaged over the tasks."""
        error = squared_error(outputs, batch.targets, batch.mask)
        return Mean(error.total, error.count * self.tasks)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The squared error, over all tasks and by task [N]."""
        error = jnp.square(outputs - batch.targets)
        counts = jnp.broadcast_to(batch.mask[:, :, None], error.shape)
        return {'loss': self.loss(outputs, batch), 'squared_error_by_task': Mean.of(error, counts, (0, 1))}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """The closed-form predictors of one regression, each task solved on its own window."""
        x, y, query = split_prompts(batch.inputs, self.dim)
        penalty = self.noise_variance * self.task_dim
        solved = []
        for n, start in enumerate(self.starts):
            window = slice(start, start + self.task_dim)
            solved.append(solve_prompts(x[:, :, window], y[:, :, n], query[:, window], *self.moments, penalty))
        return {
            name: at_query(jnp.stack([one[name] for one in solved], axis=-1), self.context + 1) for name in solved[0]
        }

    def facts(self) -> dict[str, float]:
        """Exact risks, averaged over the tasks; the floor is that of a predictor which knows the weights."""
        plain, debiased = self.moments
        risks = {
            'zero': theory.risk(plain, 0.0),
            'gradient_descent': theory.risk(plain, theory.best_step(plain)),
            'debiased_gradient_descent': theory.risk(debiased, theory.best_step(debiased)),
        }
        # Back to labels of variance K, whose query is noiseless.
        return {'floor': 0.0} | {name: self.task_dim * (r - self.noise_variance) for name, r in risks.items()}

    def tiny(self) -> 'ICLLinearMultitask':
        return dataclasses.replace(self, dim=3, task_dim=2, tasks=2, context=8)
