"""The train step and the evaluation step: pure functions of state and batch; who wraps them is `partition.py`.

Losses, gradients and metrics are sums and counts, reduced over micro-batches and over devices before the one division;
so a step does not depend on how its rows are laid out. Auxiliary losses are means over a whole batch (a micro-batch,
where there are several) and weigh as much as what it counts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.nn.losses import Mean
from jattn.nn.side_channels import LOSSES
from jattn.testbeds.task import Batch
from jattn.training.experiment import LossWeights
from jattn.typing import Array, Float, Int32, Key, PyTree


@struct.dataclass
class TrainState:
    """Everything that a step changes and a checkpoint keeps.

    Attributes:
        step: steps taken.
        params: parameters, float32.
        opt_state: the optimizer's.
        collections: the model's slow state (`mixer_state`, `batch_stats`), empty for most.
        failed_at: the first step whose loss or gradient was not finite; -1: none.
    """

    step: Int32[Array, '']
    params: PyTree
    opt_state: PyTree
    collections: dict[str, PyTree]
    failed_at: Int32[Array, '']


def batch_context(batch: Batch, train: bool = False, axis: str | None = None) -> Context:
    """What a model is told of a batch beside its inputs."""
    return Context(positions=batch.positions, segments=batch.segments, train=train, axis=axis, **batch.context)


def abstract_params(model: nn.Module, example: Batch) -> PyTree:
    """The shapes of a model's parameters, boxed with their logical axis names; nothing is computed."""
    init = lambda key, example: model.init(key, example.inputs, batch_context(example))
    return jax.eval_shape(init, jax.random.key(0), example)['params']


def init_state(model: nn.Module, tx: optax.GradientTransformation, example: Batch, key: Key) -> TrainState:
    """The state before the first step; parameters are boxed with their logical axis names."""
    variables = dict(model.init(key, example.inputs, batch_context(example)))
    params = variables.pop('params')
    return TrainState(jnp.int32(0), params, tx.init(params), variables, jnp.int32(-1))


def train_step(
    model: nn.Module,
    data: Any,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    weights: LossWeights,
    accumulate: int,
    key: Key,
    axis: str | None,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    """One optimizer step on one batch; under pmap on this device's rows of it.

    Args:
        model, data: a trunk, and what scores its outputs.
        tx, schedule: the optimizer, and its learning rate.
        weights: of the auxiliary losses.
        accumulate: micro-batches.
        key: root of dropout and the like; folded with the step, the device and the micro-batch.
        axis: the name of the devices' axis under pmap; None under jit.
        state, batch: what changes, and what it learns from.

    Returns:
        The new state, and `train/`: loss, every auxiliary loss, grad_norm, learning_rate.
    """
    key = jax.random.fold_in(key, state.step)
    key = key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))

    def loss(params: PyTree, collections: PyTree, micro: Batch, key: Key) -> tuple[Array, tuple[PyTree, PyTree]]:
        (outputs, _), updated = model.apply(
            {'params': params, **collections},
            micro.inputs,
            batch_context(micro, train=True, axis=axis),
            mutable=[*collections, LOSSES],
            rngs={'dropout': key},
        )
        updated = dict(updated)
        mean = data.loss(outputs, micro)
        sums = {name: Mean(value * mean.count, mean.count) for name, value in _by_name(updated.pop(LOSSES, {})).items()}
        total = mean.total + sum(_weight(weights, name) * own.total for name, own in sums.items())
        return total, ({'loss': mean, **sums}, updated)

    def micro_step(carry: PyTree, micro: tuple[Batch, Key]) -> tuple[PyTree, PyTree]:
        grads, collections = carry
        differentiate = jax.grad(loss, has_aux=True)
        own_grads, (sums, collections) = differentiate(state.params, collections, *micro)
        return (jax.tree.map(jnp.add, grads, own_grads), collections), sums

    start = (jax.tree.map(jnp.zeros_like, state.params), state.collections)
    if accumulate == 1:
        (grads, collections), sums = micro_step(start, (batch, key))
    else:
        micros = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        (grads, collections), sums = jax.lax.scan(micro_step, start, (micros, jax.random.split(key, accumulate)))
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    grads, sums = _over_devices((grads, sums), axis)
    mean = sums['loss']
    grads = jax.tree.map(lambda g: g / jnp.maximum(mean.count, 1).astype(g.dtype), grads)

    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    finite = jnp.isfinite(mean.total) & jnp.isfinite(norm)
    after = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        collections=collections,
        failed_at=jnp.where((state.failed_at < 0) & ~finite, state.step + 1, state.failed_at),
    )
    metrics = {name: own.value() for name, own in sums.items()}
    metrics |= {'grad_norm': norm, 'learning_rate': jnp.float32(schedule(state.step))}
    return after, {f'train/{name}': value for name, value in metrics.items()}


def eval_step(model: nn.Module, data: Any, axis: str | None, state: TrainState, batch: Batch) -> dict[str, Mean]:
    """The metrics of one batch; changes nothing."""
    outputs, _ = model.apply({'params': state.params, **state.collections}, batch.inputs, batch_context(batch))
    return _over_devices(data.metrics(outputs, batch), axis)


def _over_devices(sums: PyTree, axis: str | None) -> PyTree:
    """Under jit a sum over a sharded axis is already the sum over devices."""
    return sums if axis is None else jax.lax.psum(sums, axis)


def _by_name(sown: PyTree) -> dict[str, Float[Array, '']]:
    """The auxiliary losses of a model by the name that modules gave them, summed over layers."""
    totals: dict[str, Array] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(sown):
        totals[path[-1].key] = totals.get(path[-1].key, 0.0) + jnp.sum(value)
    return totals


def _weight(weights: LossWeights, name: str) -> float:
    if not hasattr(weights, name):
        raise ValueError(f'a mixer has the auxiliary loss {name!r}, but training.losses has no weight of that name')
    return getattr(weights, name)
