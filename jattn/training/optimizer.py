"""Optimizers and schedules, from optax; who gets Muon or weight decay is decided by a parameter's role.

The role comes from the logical names of the parameter's axes (`jattn/nn/linear.py`), never from its rank: a stack of
layers is one rank higher, and a stacked norm scale looks like a matrix.

    matrix   the first or the last name (after 'layers') is 'embed', there are at least two, and none is 'vocab':
             projections into and out of the residual stream. They decay, and Muon orthogonalises them.
    other    embeddings, read-outs, norms, biases, gates, convolutions: Adam, no decay.
"""

import abc
import dataclasses

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jattn.config import nearest
from jattn.typing import PyTree

SCHEDULES = ('cosine', 'constant_then_decay')
Names = tuple[str | None, ...]


def matrix_axes(names: Names) -> MuonDimensionNumbers | None:
    """The input and output axes of a matrix, None for any other role.

    >>> matrix_axes(('layers', 'embed', 'heads', 'head'))
    MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
    >>> matrix_axes(('layers', 'embed')) is matrix_axes(('vocab', 'embed')) is None
    True
    """
    axes = tuple(axis for axis, name in enumerate(names) if name != 'layers')
    if len(axes) < 2 or 'vocab' in names:
        return None
    if names[axes[0]] == 'embed':
        return MuonDimensionNumbers(axes[:1], axes[1:])
    if names[axes[-1]] == 'embed':
        return MuonDimensionNumbers(axes[:-1], axes[-1:])
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(abc.ABC):
    """What all optimizers share: a clipped gradient and a schedule.

    Attributes:
        peak_lr: the learning rate after warm-up.
        warmup_steps: linear from 0.
        schedule: 'cosine' to end_lr_ratio * peak_lr at the last step, or 'constant_then_decay': constant, then linear
            down over the last `decay_fraction` of the steps.
        end_lr_ratio: the last learning rate over the peak.
        decay_fraction: see `schedule`.
        clip_norm: the gradient's global norm is clipped to it; None: never.
        weight_decay: decoupled, of matrices only.
        b1, b2: Adam's.
        frozen: parameters with one of these names on their path are not trained: `mixer,feed_forward` leaves a
            decoder's norms and its two ends, `body,final_norm` its two ends alone (and its `tail`, if it has one).
    """

    peak_lr: float = 3e-3
    warmup_steps: int = 40
    schedule: str = 'cosine'
    end_lr_ratio: float = 0.1
    decay_fraction: float = 0.2
    clip_norm: float | None = 1.0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f'schedule={self.schedule!r} must be one of {", ".join(SCHEDULES)}')
        if self.peak_lr <= 0 or self.warmup_steps < 0:
            raise ValueError(
                f'peak_lr={self.peak_lr} must be positive and warmup_steps={self.warmup_steps} not negative'
            )

    def learning_rate(self, steps: int, peak: float | None = None) -> optax.Schedule:
        """The schedule over a run of `steps` steps."""
        peak = self.peak_lr if peak is None else peak
        end, after = peak * self.end_lr_ratio, max(steps - self.warmup_steps, 1)
        warmup = optax.linear_schedule(0.0, peak, max(self.warmup_steps, 1))
        if self.schedule == 'cosine':
            rest = optax.cosine_decay_schedule(peak, after, self.end_lr_ratio)
        else:
            decay = max(round(self.decay_fraction * steps), 1)
            rest = optax.linear_schedule(peak, end, decay, max(after - decay, 0))
        return optax.join_schedules([warmup, rest], [self.warmup_steps]) if self.warmup_steps else rest

    def make(self, steps: int, names: PyTree) -> optax.GradientTransformation:
        """The transformation of a run; `names` holds each parameter's logical axis names."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        matrices = jax.tree.map(matrix_axes, names, is_leaf=is_names)
        # Their gradient is left out of the clipped norm, and what decay would do to them is undone.
        still = [optax.masked(optax.set_to_zero(), _named(names, self.frozen))] if self.frozen else []
        return optax.chain(*still, *clip, self.scale(steps, matrices), *still)

    @abc.abstractmethod
    def scale(self, steps: int, matrices: PyTree) -> optax.GradientTransformation:
        """The method itself; `matrices` holds the axes of each matrix and None for every other parameter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019)."""

    def scale(self, steps: int, matrices: PyTree) -> optax.GradientTransformation:
        decays = jax.tree.map(lambda axes: axes is not None, matrices, is_leaf=_is_role)
        return optax.adamw(self.learning_rate(steps), self.b1, self.b2, weight_decay=self.weight_decay, mask=decays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon (Jordan et al. 2024) for matrices, AdamW without decay for the rest.

    Attributes:
        peak_lr: of the matrices.
        adam_peak_lr: of the rest.
        momentum: Muon's beta.
    """

    peak_lr: float = 0.02
    adam_peak_lr: float = 3e-3
    momentum: float = 0.95

    def scale(self, steps: int, matrices: PyTree) -> optax.GradientTransformation:
        return muon(
            self.learning_rate(steps),
            beta=self.momentum,
            weight_decay=self.weight_decay,
            adam_b1=self.b1,
            adam_b2=self.b2,
            adam_learning_rate=self.learning_rate(steps, self.adam_peak_lr),
            muon_weight_dimension_numbers=matrices,
        )


OPTIMIZERS: dict[str, OptimizerConfig] = {'adamw': AdamWConfig(), 'muon': MuonConfig()}


def is_names(value: object) -> bool:
    """Whether a node of a tree of names is one parameter's names."""
    return isinstance(value, tuple) and all(name is None or isinstance(name, str) for name in value)


def _named(names: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Which parameters have one of the names on their path.

    Raises:
        ValueError: no parameter has it.
    """
    paths = [{entry.key for entry in path} for path, _ in jax.tree_util.tree_leaves_with_path(names, is_leaf=is_names)]
    for name in frozen:
        if not any(name in path for path in paths):
            raise ValueError(f'optimizer.frozen: no parameter {name!r}; {nearest(name, sorted(set().union(*paths)))}')
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(entry.key in frozen for entry in path), names, is_leaf=is_names
    )


def _is_role(value: object) -> bool:
    return value is None or isinstance(value, MuonDimensionNumbers)
