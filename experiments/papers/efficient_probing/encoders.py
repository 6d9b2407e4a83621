"""Two encoders of one size: a masked autoencoder (He et al. 2021), and one trained on the classes by its class token.

    x            patches of pixels whose mean is 0 and deviation 1
    masked       encode a quarter of the patches, decode all of them, (x - decoded)^2 over those that were hidden
    supervised   encode all, cross-entropy of a linear map of the class token

Both are the library's encoder over patches; the token at position 0 is the class token, whose input is zero and whose
position is learned. To the decoder a hidden patch is a zero with its position.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.papers.contract import ClaimContext
from experiments.papers.efficient_probing.settings import Images, Size
from experiments.papers.fit import fit
from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.models.encoder import EncoderConfig
from jattn.nn.losses import cross_entropy
from jattn.poolers import FirstConfig
from jattn.typing import Array, Float, Int32, Key, PyTree

PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081  # of MNIST; without them the autoencoder stays at the mean image


def config(size: Size, patches: int, width: int, layers: int, **changes: object) -> EncoderConfig:
    """An encoder of tokens with learned positions."""
    mixer = SoftmaxConfig(causal=False, rotary_base=None, heads=size.heads)
    return EncoderConfig(
        width=width, layers=layers, mixer=(mixer,), read_in='linear', max_positions=patches + 1, remat='none', **changes
    )


class Masked(nn.Module):
    """The masked autoencoder.

    Attributes:
        encoder, decoder: their configs.
    """

    encoder: EncoderConfig
    decoder: EncoderConfig

    @nn.compact
    def __call__(self, patches: Float[Array, 'B T P'], seen: Int32[Array, 'B N']) -> Float[Array, 'B T P']:
        tokens = jnp.take_along_axis(patches, seen[:, :, None], axis=1)
        places = jnp.pad(seen + 1, ((0, 0), (1, 0)))
        x, _ = self.encoder.make(name='encoder')(_with_class_token(tokens), Context(positions=places))
        whole = jnp.zeros((len(x), patches.shape[1] + 1, x.shape[-1]), x.dtype)
        whole = whole.at[jnp.arange(len(x))[:, None], places].set(x)
        return self.decoder.make(name='decoder')(whole)[0][:, 1:]


def train_masked(context: ClaimContext, size: Size, images: Images) -> tuple[PyTree, float]:
    """The parameters of an encoder that was trained to fill in, and its error over that of the mean image."""
    data, (_, count, pixels) = _on_device(images), images.patches.shape
    encoder = config(size, count, size.width, size.layers, pooler=None, read_out=False)
    decoder = config(size, count, size.decoder_width, size.decoder_layers, pooler=None, output_size=pixels)
    model, visible = Masked(encoder, decoder), count - round(size.hidden * count)

    def loss(params: PyTree, key: Key) -> Array:
        pick_key, hide_key = jax.random.split(key)
        patches = _pick(data, pick_key, size.batch)[0]
        order = jnp.argsort(jax.random.uniform(hide_key, (size.batch, count)), axis=1)
        error = jnp.mean(
            jnp.square(model.apply({'params': params}, patches, jnp.sort(order[:, :visible])) - patches), -1
        )
        is_hidden = jnp.argsort(order, axis=1) >= visible
        return jnp.sum(error * is_hidden) / jnp.sum(is_hidden)

    example = jnp.zeros((1, count, pixels)), jnp.arange(visible)[None]
    params, trace = _fit(size, model, example, loss, size.masked_steps, context.key(100))
    spread = float(np.mean(np.var(_standard(images.patches), axis=0)))
    context.say(f'masked autoencoder: squared error {trace["loss"][-1]:.4f}; of the mean image {spread:.4f}')
    return params['encoder'], float(trace['loss'][-1] / spread)


def train_supervised(context: ClaimContext, size: Size, images: Images) -> PyTree:
    """The parameters of an encoder whose class token was trained to tell the classes."""
    data, count = _on_device(images), images.patches.shape[1]
    cfg = config(size, count, size.width, size.layers, pooler=FirstConfig(), output_size=10)
    model = cfg.for_data('linear', images.patches.shape[2], 10).make()

    def loss(params: PyTree, key: Key) -> Array:
        patches, labels = _pick(data, key, size.batch)
        logits, _ = model.apply({'params': params}, _with_class_token(patches))
        return cross_entropy(logits, labels).value()

    example = (jnp.zeros((1, count + 1, images.patches.shape[2])),)
    params, trace = _fit(size, model, example, loss, size.supervised_steps, context.key(200))
    context.say(f'supervised: loss {trace["loss"][-1]:.3f}')
    return params


def features(size: Size, params: PyTree, images: Images, rows: int = 500) -> Float[np.ndarray, 'N T+1 D']:
    """The tokens of whole images, the class token first."""
    cfg = config(size, images.patches.shape[1], size.width, size.layers, pooler=None, read_out=False)
    model = cfg.for_data('linear', images.patches.shape[2], size.width).make()
    run = jax.jit(lambda params, patches: model.apply({'params': params}, _with_class_token(patches))[0])
    pieces = [images.patches[at : at + rows] for at in range(0, len(images.patches), rows)]
    return np.concatenate([np.asarray(run(params, _standard(piece))) for piece in pieces])


def _fit(
    size: Size, model: nn.Module, example: tuple, loss: Callable, steps: int, key: Key
) -> tuple[PyTree, dict[str, np.ndarray]]:
    params = nn.unbox(jax.jit(model.init)(jax.random.fold_in(key, 1), *example)['params'])
    schedule = optax.warmup_cosine_decay_schedule(0, size.peak_lr, steps // 10, steps, size.peak_lr / 10)
    return fit(
        params, loss, optax.adamw(schedule, b2=0.95, weight_decay=0.05), steps, key, steps_per_call=min(steps, 50)
    )


def _on_device(images: Images) -> tuple[Array, Array]:
    """As bytes: what a compiled step holds of them is small."""
    return jnp.asarray(np.round(images.patches * 255).astype(np.uint8)), jnp.asarray(images.labels)


def _pick(data: tuple[Array, Array], key: Key, batch: int) -> tuple[Float[Array, 'B T P'], Int32[Array, 'B']]:
    chosen = jax.random.randint(key, (batch,), 0, len(data[1]))
    return _standard(data[0][chosen].astype(jnp.float32) / 255), data[1][chosen]


def _standard(patches: Float[Array, 'B T P']) -> Float[Array, 'B T P']:
    return (patches - PIXEL_MEAN) / PIXEL_DEVIATION


_with_class_token = functools.partial(jnp.pad, pad_width=((0, 0), (1, 0), (0, 0)))
