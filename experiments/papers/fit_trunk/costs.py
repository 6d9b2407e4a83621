"""What length costs: training steps of FIT and of flat Transformers, and the memory of one on a very large image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.papers.contract import ClaimContext
from experiments.papers.cost import Cost, Make, draw, measure, print_table
from experiments.papers.fit_trunk.settings import FIT, FLAT, Size, flat, large, scaled
from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.models.fit import FITConfig
from jattn.models.trunk import TrunkConfig
from jattn.nn.losses import cross_entropy

ALL_PAIRS = 'flat, all pairs in memory'


def table(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Gradients of the loss of one row, at every length."""
    makes = {
        FIT: _gradient(lambda tokens: scaled(size, tokens)),
        FLAT: _gradient(lambda tokens: flat(size)),
        ALL_PAIRS: _gradient(lambda tokens: flat(size, 'reference')),
    }
    pairs_longest = min(size.flat_longest, 2048)
    longest = {FLAT: size.flat_longest, ALL_PAIRS: pairs_longest}
    found = measure(makes, size.lengths, size.repeats, longest, context.say)
    title = 'a gradient of one row, groups of T^(1/3) tokens'
    print_table(title, found, shortest=size.lengths[1])
    draw(found, context.out / 'cost.png', title, shortest=size.lengths[1])
    return found


def _gradient(config: Callable[[int], TrunkConfig]) -> Make:
    def make(tokens: int) -> tuple[Callable, tuple]:
        model, inputs = config(tokens).make(), jnp.zeros((1, tokens), jnp.int32)
        params = nn.unbox(jax.jit(model.init)(jax.random.key(0), inputs[:, :tokens])['params'])

        def loss(params: dict, inputs: jax.Array) -> jax.Array:
            return cross_entropy(model.apply({'params': params}, inputs)[0], inputs).value()

        return jax.grad(loss), (params, inputs)

    return make


def attention_exponent() -> float:
    """The exponent of T in FIT's operations, where groups grow as T^(1/3) and are large beside the width."""
    mixer = SoftmaxConfig(heads=1, rotary_base=None, causal=False)

    def operations(group: int) -> int:
        cfg = FITConfig(
            width=16, group=group, latents=2, groups=group**2, local=mixer, latent=mixer, read_in='linear',
            input_size=16, output_size=16,
        )  # fmt: skip
        return cfg.flops(group**3)

    near, far = 2**12, 2**14
    return float(np.log(operations(far) / operations(near)) / np.log((far / near) ** 3))


def large_image(context: ClaimContext, size: Size) -> tuple[float, str]:
    """Peak GB of a compiled training step on one image, by the compiler's analysis; nothing is allocated."""
    cfg = large(size)
    model, optimizer = cfg.make(), optax.adamw(1e-3)
    image = jax.ShapeDtypeStruct((1, size.image, size.image, 3), jnp.bfloat16)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)['params'])
    opt_state = jax.eval_shape(optimizer.init, params)

    def step(params: dict, opt_state: optax.OptState, image: jax.Array, label: jax.Array) -> tuple:
        def loss(params: dict) -> jax.Array:
            return cross_entropy(model.apply({'params': params}, image, Context(train=True))[0], label).value()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, after = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), after, value

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, image, label).compile()
    memory = compiled.memory_analysis()
    parts = {
        'arguments': memory.argument_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'outputs that are no arguments': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    total = sum(parts.values())
    note = ', '.join(f'{name} {value / 1e9:.2f} GB' for name, value in parts.items())
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    note = f'{cfg.describe()}, {count / 1e6:.0f}M parameters with AdamW, bfloat16, every layer recomputed: {note}'
    context.say(f'one image of {size.image} x {size.image}: {total / 1e9:.2f} GB; {note}')
    return total / 1e9, note
