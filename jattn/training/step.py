"""The train step and the evaluation step: pure functions of state and batch; who wraps them is `partition.py`.

Losses, gradients and metrics are sums and counts, reduced over micro-batches and (through `reduce`) over devices before
the one division; so a step does not depend on how its rows are laid out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch
from jattn.typing import Array, Float, Int32, Key, PyTree

Reduce = Callable[[PyTree], PyTree]
METRICS = ('train/loss', 'train/grad_norm', 'train/learning_rate')


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


def init_state(model: nn.Module, tx: optax.GradientTransformation, example: Batch, key: Key) -> TrainState:
    """The state before the first step; parameters are boxed with their logical axis names."""
    variables = dict(model.init(key, example.inputs, _context(example)))
    params = variables.pop('params')
    return TrainState(jnp.int32(0), params, tx.init(params), variables, jnp.int32(-1))


def train_step(
    model: nn.Module,
    data: Any,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    reduce: Reduce,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    """One optimizer step on one batch (this device's rows of it, where `reduce` sums over devices)."""

    def loss(params: PyTree, collections: PyTree, micro: Batch) -> tuple[Array, tuple[Mean, PyTree]]:
        (outputs, _), updated = model.apply(
            {'params': params, **collections}, micro.inputs, _context(micro, train=True), mutable=list(collections)
        )
        mean = data.loss(outputs, micro)
        return mean.total, (mean, updated)

    def micro_step(carry: PyTree, micro: Batch) -> tuple[PyTree, None]:
        grads, mean, collections = carry
        (_, (own, collections)), own_grads = jax.value_and_grad(loss, has_aux=True)(state.params, collections, micro)
        return (jax.tree.map(jnp.add, grads, own_grads), mean + own, dict(collections)), None

    zero = (jax.tree.map(jnp.zeros_like, state.params), Mean(jnp.zeros(()), jnp.zeros(())), state.collections)
    if accumulate == 1:
        (grads, mean, collections), _ = micro_step(zero, batch)
    else:
        micros = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        (grads, mean, collections), _ = jax.lax.scan(micro_step, zero, micros)
    grads, mean = reduce((grads, mean))
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
    return after, dict(zip(METRICS, (mean.value(), norm, jnp.float32(schedule(state.step)))))


def eval_step(model: nn.Module, data: Any, reduce: Reduce, state: TrainState, batch: Batch) -> dict[str, Mean]:
    """The metrics of one batch; changes nothing."""
    outputs, _ = model.apply({'params': state.params, **state.collections}, batch.inputs, _context(batch))
    return reduce(data.metrics(outputs, batch))


def _context(batch: Batch, train: bool = False) -> Context:
    return Context(positions=batch.positions, segments=batch.segments, train=train)
