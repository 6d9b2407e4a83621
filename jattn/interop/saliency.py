"""The saliency decoder in the file of `vit_s`: from the tokens of an image's patches to a map of its pixels in 0 .. 1.

    x = relu(norm(up(x))), three times              map = sigmoid(resize(w . x + b))

`up` is a transposed convolution of 4 x 4 taps, stride 2 and padding 1, so that 16 x 16 patches become 128 x 128 places;
`norm` is batch normalisation with the statistics of its training, folded here into the convolution before it; `resize`
is bilinear, to the image's pixels. What it was trained on its file does not say.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jattn.interop import onnx
from jattn.typing import Array, Float

STAGES = (1, 2, 3)
EPSILON = 1e-5  # of the batch normalisation


@struct.dataclass
class Saliency:
    """The decoder's parameters.

    Attributes:
        kernels: of the stages, [4, 4, in, out], taps reversed.
        shifts: of the stages, [out].
        weight, bias: of the map, [in] and [].
    """

    kernels: tuple[Float[Array, '4 4 I O'], ...]
    shifts: tuple[Float[Array, 'O'], ...]
    weight: Float[Array, 'I']
    bias: Float[Array, '']


def load(path: str | pathlib.Path) -> Saliency:
    """The decoder of a file, `PRETRAINED['vit_s'].path()`.

    Raises:
        ConfigError: it is no ONNX file or has no module `decoder`.
        KeyError: the module is another one.
    """
    theirs = onnx.parameters(onnx.OnnxFile(path), 'decoder')
    kernels, shifts = [], []
    for stage in STAGES:
        norm = {name: theirs[f'bn{stage}.{name}'] for name in ('weight', 'bias', 'running_mean', 'running_var')}
        scale = norm['weight'] / np.sqrt(norm['running_var'] + EPSILON)
        taps = theirs[f'upconv{stage}.weight'].transpose(2, 3, 0, 1)[::-1, ::-1]
        kernels.append(jnp.asarray(taps * scale))
        shifts.append(jnp.asarray((theirs[f'upconv{stage}.bias'] - norm['running_mean']) * scale + norm['bias']))
    weight, bias = theirs['final_conv.weight'].ravel(), theirs['final_conv.bias'][0]
    return Saliency(tuple(kernels), tuple(shifts), jnp.asarray(weight), jnp.asarray(bias))


def saliency(decoder: Saliency, patches: Float[Array, 'B N D'], pixels: tuple[int, int]) -> Float[Array, 'B Y X']:
    """How much each pixel stands out.

    Args:
        decoder: its parameters.
        patches: the tokens of the patches behind the encoder's last norm, in raster order, without the class token.
        pixels: height and width of the image.

    Raises:
        ValueError: so many patches are none of an image of this shape.
    """
    height, width = pixels
    rows = round((patches.shape[1] * height / width) ** 0.5)
    if rows < 1 or patches.shape[1] % rows or rows * width != patches.shape[1] // rows * height:
        raise ValueError(f'saliency: {patches.shape[1]} patches are none of an image of {height} x {width} pixels')
    x = patches.reshape(len(patches), rows, -1, patches.shape[2])
    for kernel, shift in zip(decoder.kernels, decoder.shifts):
        # A step between inputs of 2, and 4 taps - 1 - padding of 1 zeros around them.
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        x = jax.nn.relu(x + shift[None, None, None])
    scores = jnp.einsum('byxi,i->byx', x, decoder.weight) + decoder.bias
    return jax.nn.sigmoid(jax.image.resize(scores, (len(x), height, width), 'linear'))
