"""Auxiliary losses and slow state: weighted, of the whole batch on any layout, left alone by evaluation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context, MixerConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.linear import Linear
from jattn.nn.side_channels import batch_sum, sow_loss, token_mean
from jattn.testbeds import ICLLinear
from jattn.training.evaluate import evaluate
from jattn.training.experiment import Experiment, LossWeights, MeshConfig, TrainingConfig
from jattn.training.feed import make_feed
from jattn.training.loop import make_partition
from jattn.training.optimizer import AdamWConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalancedConfig(MixerConfig):
    """A linear map whose outputs' mean square is an auxiliary loss (a square of a mean: it must be the batch's), and
    which counts tokens and averages its inputs."""

    loss: str = 'load_balance'

    def make(self, **flax_kwargs):
        return Balanced(self, **flax_kwargs)

    def init_state(self, batch, capacity, dtype=jnp.bfloat16):
        raise NotImplementedError

    def flops(self, tokens):
        return 0

    def tiny(self):
        return self


class Balanced(nn.Module):
    cfg: BalancedConfig

    @nn.compact
    def __call__(self, x, context=Context(), state=None):
        init = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        seen = self.variable('mixer_state', 'seen', lambda: init(None, (x.shape[-1],), jnp.float32))
        if context.train and self.is_mutable_collection('mixer_state') and not self.is_initializing():
            seen.value = seen.value + batch_sum(jnp.sum(x, axis=(0, 1)), context)
        y = Linear((x.shape[-1],), ('embed', 'mlp'), name='proj')(x)
        sow_loss(self, self.cfg.loss, jnp.sum(jnp.square(token_mean(y, context))))
        return y, state


LAYOUTS = {
    'one': dict(mesh=MeshConfig(data=1)),
    'data4': dict(mesh=MeshConfig(data=4)),
    'fsdp2': dict(mesh=MeshConfig(data=2, fsdp=2)),
    'pmap4': dict(mesh=MeshConfig(data=4), partition='pmap'),
}


def experiment(layout='one', weight=0.5, loss='load_balance', **training):
    return Experiment(
        model=DecoderConfig(width=16, layers=2, mixer=(BalancedConfig(loss=loss),), feed_forward=None),
        data=ICLLinear(dim=2, context=8),
        training=TrainingConfig(
            steps=3,
            batch=8,
            eval_batches=1,
            optimizer=AdamWConfig(peak_lr=1e-2, warmup_steps=1),
            losses=LossWeights(load_balance=weight),
            **LAYOUTS[layout],
            **training,
        ),
    )


@functools.cache
def trained(layout='one', weight=0.5):
    config = experiment(layout, weight)
    feed = make_feed(config)
    partition = make_partition(config, feed)
    state, metrics = partition.train(partition.init(jax.random.key(0)), feed.take(3), 3)
    before = partition.unreplicated(state)
    evaluate(partition, state, feed.eval_batches())
    after = partition.unreplicated(state)
    jax.tree.map(np.testing.assert_array_equal, before.collections, after.collections)
    return after, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize('layout', [name for name in LAYOUTS if name != 'one'])
def test_they_are_those_of_the_whole_batch_on_every_layout(layout):
    (expected, metrics), (found, own) = trained(), trained(layout)
    assert own.keys() == metrics.keys() and 'train/load_balance' in own
    for name in own:
        np.testing.assert_allclose(own[name], metrics[name], rtol=1e-4)
    for part in ('params', 'collections'):
        both = (jax.tree.leaves(getattr(state, part)) for state in (found, expected))
        for a, b in zip(*both, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_linear_in_the_weight_and_the_tasks_loss_does_not_know_it():
    norms, tasks = [], set()
    for weight in range(4):
        config = experiment(weight=float(weight))
        feed = make_feed(config)
        partition = make_partition(config, feed)
        _, metrics = partition.train(partition.init(jax.random.key(0)), feed.take(1), 1)
        norms.append(float(metrics['train/grad_norm']) ** 2)
        tasks.add(float(metrics['train/loss']))
    # |g + w h|^2 is a parabola in w: its third difference is 0, its second 2 |h|^2.
    assert norms[0] - 2 * norms[1] + norms[2] > 1e-3 and len(tasks) == 1
    np.testing.assert_allclose(np.diff(norms, 3), 0.0, atol=1e-3)


def test_layers_add_up():
    config = experiment()
    model, x = config.make_model(), jax.random.normal(jax.random.key(1), (2, 5, 2))
    variables = nn.unbox(model.init(jax.random.key(0), x))
    _, sown = model.apply(variables, x, mutable=['losses'])
    (leaf,) = jax.tree.leaves(sown)
    assert leaf.shape == (2,)


def test_slow_state_has_a_layer_axis_and_is_in_the_training_state():
    state, _ = trained()
    (seen,) = jax.tree.leaves(state.collections)
    assert seen.shape == (2, 16) and np.any(np.asarray(seen) != 0)


def test_an_auxiliary_loss_without_a_weight_is_named():
    config = experiment(loss='unheard_of')
    feed = make_feed(config)
    partition = make_partition(config, feed)
    with pytest.raises(ValueError, match="auxiliary loss 'unheard_of'"):
        partition.train(partition.init(jax.random.key(0)), feed.take(1), 1)


def test_token_means_leave_padding_out():
    x = jnp.array([[1.0, 3.0, jnp.nan]])
    assert float(token_mean(x, Context(segments=jnp.array([[4, 4, 0]])))) == 2.0
    assert float(token_mean(x, Context(segments=jnp.zeros((1, 3), jnp.int32)))) == 0.0
