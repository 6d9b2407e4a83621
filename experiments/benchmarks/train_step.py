"""The training step of lm_bytes as shipped against the same decoder written plainly with flax.linen parts.

    python -m experiments.benchmarks.train_step [--pairs=20] [--out=DIR]

The plain one has the same mathematics (RMSNorm, rotary, tanh gelu, untied head, Muon with the same schedule), the same
parameters and batch; its attention is `jax.nn.dot_product_attention`, its layers are a Python loop, nothing is
recomputed. The record also holds both losses on the first batch: at initialisation both are near ln 256 + 1/2.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import linen as nn

from experiments import cli, configs
from experiments.benchmarks import harness
from jattn.nn.losses import cross_entropy
from jattn.nn.rotary import rotate
from jattn.testbeds.task import Batch
from jattn.training.feed import make_feed
from jattn.training.loop import make_partition
from jattn.training.optimizer import OptimizerConfig
from jattn.typing import Array, PyTree

flags.adopt_module_key_flags(harness)


class PlainBlock(nn.Module):
    """A pre-norm block of flax.linen parts."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        split = (self.heads, width // self.heads)
        h = nn.RMSNorm()(x)
        q, k, v = (nn.DenseGeneral(split, use_bias=False, name=name)(h) for name in 'qkv')
        positions = jnp.arange(x.shape[1])[None]
        h = jax.nn.dot_product_attention(rotate(q, positions), rotate(k, positions), v, is_causal=True)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name='o')(h)
        h = nn.gelu(nn.Dense(4 * width, use_bias=False, name='up')(nn.RMSNorm()(x)))
        return x + nn.Dense(width, use_bias=False, name='down')(h)


class PlainDecoder(nn.Module):
    """A decoder of flax.linen parts."""

    vocabulary: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        x = nn.Embed(self.vocabulary, self.width)(tokens) * self.width**0.5
        for layer in range(self.layers):
            x = PlainBlock(self.heads, name=f'block_{layer}')(x)
        return nn.Dense(self.vocabulary, use_bias=False, name='head')(nn.RMSNorm()(x))


def plain_names(params: PyTree) -> PyTree:
    """The axis names that the optimizer reads the roles from."""
    roles = {
        'q': ('embed', 'heads', 'head'),
        'k': ('embed', 'heads', 'head'),
        'v': ('embed', 'heads', 'head'),
        'o': ('heads', 'head', 'embed'),
        'up': ('embed', 'mlp'),
        'down': ('mlp', 'embed'),
        'head': ('embed', 'vocab'),
        'Embed_0': ('vocab', 'embed'),
    }
    return jax.tree_util.tree_map_with_path(lambda path, leaf: roles.get(path[-2].key, ('embed',)), params)


class PlainTraining:
    """A state and a jitted step; calling it takes one step on the same batch."""

    def __init__(self, model: PlainDecoder, optimizer: OptimizerConfig, steps: int, batch: Batch) -> None:
        self.params = jax.jit(model.init)(jax.random.key(0), batch.inputs)['params']
        tx = optimizer.make(steps, plain_names(self.params))
        self.opt_state = tx.init(self.params)
        self._batch = jax.device_put(batch)

        def step(params: PyTree, opt_state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, Array]:
            def loss_of(params: PyTree) -> Array:
                return cross_entropy(model.apply({'params': params}, batch.inputs), batch.targets, batch.mask).value()

            loss, grads = jax.value_and_grad(loss_of)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> Array:
        self.params, self.opt_state, loss = self._step(self.params, self.opt_state, self._batch)
        return loss


class ShippedTraining:
    """The partition of an experiment; calling it takes one step on the same batch."""

    def __init__(self, config: object, batch: Batch) -> None:
        self._partition = make_partition(config, make_feed(config))
        self.state = self._partition.init(jax.random.key(0))
        self._batch = batch

    def __call__(self) -> Array:
        self.state, metrics = self._partition.train(self.state, [self._batch], 1)
        return metrics['train/loss']


def main(argv: Sequence[str]) -> None:
    """Times one step of each in turn."""
    del argv
    config = configs.load('lm_bytes', 'small')
    training, model = config.training, config.trunk
    (batch,) = make_feed(config).take(1)
    heads = model.mixer[0].heads
    plain_model = PlainDecoder(model.input_size, model.width, model.layers, heads)
    contestants = {
        'jattn': ShippedTraining(config, batch),
        'flax.linen': PlainTraining(plain_model, training.optimizer, training.steps, batch),
    }
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(params))
        for params in (contestants['jattn'].state.params, contestants['flax.linen'].params)
    ]
    if counts[0] != counts[1]:
        raise ValueError(f'the decoders have {counts[0]} and {counts[1]} parameters: they are not the same')
    facts = {'batch': training.batch, 'tokens': config.data.tokens, 'parameters': counts[0]}
    facts['first_losses'] = {label: float(step()) for label, step in contestants.items()}
    record = harness.compare(
        'lm_bytes step', contestants, baseline='flax.linen', pairs=harness.PAIRS.value, seconds=120, facts=facts
    )
    print(harness.table([record]))
    print(f'written: {harness.save("train_step", [record], cli.OUT.value)}')


if __name__ == '__main__':
    cli.run(main)
