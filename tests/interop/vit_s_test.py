"""ViT-S/14 from its package: tokens at two sizes of image and the saliency map, held to onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.interop import load, saliency, vit
from jattn.interop.pretrained import PRETRAINED

try:
    PATH = PRETRAINED['vit_s'].path()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

TOKENS = '/backbone/layernorm/Add_1_output_0'  # of the graph: behind the last norm
# What onnxruntime gave for 112 pixels: the first and the last three numbers, the mean size of all.
FIRST, LAST, SIZE = (-0.509047, -0.135432, 2.051787), (-2.655018, 2.966771, -1.530078), 1.995268


@pytest.fixture(scope='module')
def found():
    return load('vit_s')


def pictures(side):
    """Two images of waves, standardised."""
    y, x, colour = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing='ij')
    waves = [np.sin(x / 9 + colour) * np.cos(y / 7), np.sin((x + y) / 5) * (x > side // 2)]
    return vit.standardise(jnp.asarray(np.stack(waves) / 2 + 0.5, jnp.float32))


def test_tokens_are_those_that_onnxruntime_gave(found):
    tokens = jax.jit(found.model.apply)({'params': found.params}, pictures(112))[0]
    assert tokens.shape == (2, 65, 384)
    np.testing.assert_allclose(tokens[0, 0, :3], FIRST, atol=2e-4)
    np.testing.assert_allclose(tokens[1, 64, 381:], LAST, atol=2e-4)
    assert abs(float(jnp.mean(jnp.abs(tokens))) - SIZE) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('side', [112, 224])
def test_every_token_and_the_saliency_map_are_those_of_onnxruntime(found, side):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model = onnx.load(PATH)
    # The graph is made for 224 pixels, its encoder for any: its positions are resized in it.
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_value = side
    drawn = model.graph.output[0].name
    names = [TOKENS, *([drawn] if side == 224 else [])]
    del model.graph.output[:]
    model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, names))
    session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    said = session.run(None, {'input_image': np.asarray(pictures(side)).transpose(0, 3, 1, 2)})
    tokens = jax.jit(found.model.apply)({'params': found.params}, pictures(side))[0]
    np.testing.assert_allclose(tokens, said[0], atol=2e-4)
    if side == 224:
        drawn = saliency.saliency(saliency.load(PATH), tokens[:, 1:], (side, side))
        np.testing.assert_allclose(drawn, said[1][:, 0], atol=1e-5)
        assert np.ptp(said[1]) > 0.1
