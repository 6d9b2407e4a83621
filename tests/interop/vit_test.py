"""ViT and DINOv2: parity with transformers in every layer; the same model from an ONNX graph; what is not read."""

import jax
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import load, onnx, pretrained, saliency, vit
from jattn.understanding import capture
from tests.interop.onnx_files import node, write
from tests.interop.tiny_models import VISION, answer, golden, images, reference


@pytest.mark.slow
@pytest.mark.parametrize('name', VISION)
def test_outputs_and_every_layer_are_those_of_transformers(name, tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model = reference(name)
    model.save_pretrained(tmp_path)
    ours = load(str(tmp_path))
    with torch.no_grad():
        outputs, streams = answer(name, model)
        square = np.random.RandomState(2).randn(1, 20, 20, 3).astype(np.float32)  # as many places as the table
        fitting = model(torch.from_numpy(square).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    found = capture.run(ours.model, ours.params, images(), sites=['resid_post'])
    assert len(streams) == ours.model.cfg.layers and np.std(outputs) > 0.3
    for layer, stream in enumerate(streams):
        np.testing.assert_allclose(found.at('resid_post', layer), stream, atol=1e-5, rtol=1e-5, err_msg=f'{layer}')
    np.testing.assert_allclose(found.outputs, outputs, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours.model.apply({'params': ours.params}, square)[0], fitting, atol=1e-5, rtol=1e-5)


def test_an_onnx_graph_and_a_folder_of_the_same_tensors_are_one_model(tmp_path):
    config, tensors, _ = golden('dinov2')
    constants, nodes = {}, []
    for number, (name, tensor) in enumerate(tensors.items()):
        module = f'trunk.{name.removesuffix(".weight")}'
        if name == 'embeddings.position_embeddings':
            for op, part in (('Concat', tensor[:, :1]), ('Reshape', tensor[:, 1:])):
                constants[f'onnx::{op}_{number}'] = part
                nodes.append(node(op, f'/trunk/embeddings/{op}_1', f'onnx::{op}_{number}'))
        elif tensor.ndim == 2 and name.endswith('weight'):
            constants[f'onnx::MatMul_{number}'] = tensor.T
            nodes.append(node('MatMul', f'/{module.replace(".", "/")}/MatMul', 'x', f'onnx::MatMul_{number}'))
        else:
            constants[f'trunk.{name}'] = tensor
    file = onnx.OnnxFile(write(tmp_path / 'a.onnx', constants, nodes))
    cfg, params = pretrained.build(config, onnx.parameters(file, 'trunk'), 'a.onnx')
    whole, expected = pretrained.build(config, tensors, 'a folder')
    assert cfg == whole
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(ConfigError, match='a.onnx: an ONNX file does not say which model it is'):
        pretrained.load(str(tmp_path / 'a.onnx'))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(hidden_act='gelu_new'), "hidden_act='gelu_new' is not one of 'gelu'"),
        (dict(qkv_bias=False), 'qkv_bias=False is not one of True'),
        (dict(use_swiglu_ffn=True), 'use_swiglu_ffn=True is not one of False'),
        (dict(image_size=[20, 24]), r'image_size=\[20, 24\] must be one number: squares are read'),
        (dict(patch_size=[4, 4]), r'patch_size=\[4, 4\] must be one number'),
    ],
)
def test_a_config_that_is_not_read_is_named(fields, message):
    config, tensors, _ = golden('dinov2')
    with pytest.raises(ConfigError, match=message):
        pretrained.build(config | fields, tensors, 'here')


def test_patches_multiply_as_their_convolution_does():
    draw = np.random.RandomState(0)
    weight, patch = draw.randn(5, 3, 4, 4), draw.randn(4, 4, 3)
    (kernel,) = vit.flat_patches(4).load(weight)
    np.testing.assert_allclose(patch.ravel() @ kernel, np.einsum('dfyx,yxf->d', weight, patch))
    np.testing.assert_array_equal(vit.flat_patches(4).save(kernel)[0], weight)


def test_a_saliency_map_is_its_transposed_convolutions_norms_and_a_bilinear_resize(tmp_path):
    draw, widths = np.random.RandomState(0), (5, 4, 3, 2)
    theirs = {'final_conv.weight': draw.randn(1, 2, 1, 1), 'final_conv.bias': draw.randn(1)}
    for n in (1, 2, 3):
        theirs[f'upconv{n}.weight'] = draw.randn(widths[n - 1], widths[n], 4, 4) / 4
        for name in ('upconv{}.bias', 'bn{}.weight', 'bn{}.bias', 'bn{}.running_mean'):
            theirs[name.format(n)] = draw.randn(widths[n])
        theirs[f'bn{n}.running_var'] = draw.rand(widths[n])
    written = {f'decoder.{name}': array.astype(np.float32) for name, array in theirs.items()}
    decoder = saliency.load(write(tmp_path / 'a.onnx', written))
    patches = draw.randn(1, 6, 5).astype(np.float32)

    x = patches[0].reshape(2, 3, 5)
    for n in (1, 2, 3):
        rows, columns, _ = x.shape
        up = np.zeros((2 * rows + 2, 2 * columns + 2, widths[n]))
        for row, column in np.ndindex(rows, columns):  # every place writes 4 x 4 places
            taps = np.einsum('i,ioyx->yxo', x[row, column], theirs[f'upconv{n}.weight'])
            up[2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += taps
        up = up[1:-1, 1:-1] + theirs[f'upconv{n}.bias'] - theirs[f'bn{n}.running_mean']
        normed = up / np.sqrt(theirs[f'bn{n}.running_var'] + 1e-5) * theirs[f'bn{n}.weight'] + theirs[f'bn{n}.bias']
        x = np.maximum(normed, 0)
    scores = x @ theirs['final_conv.weight'].ravel() + theirs['final_conv.bias']
    plain = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(saliency.saliency(decoder, patches, (16, 24))[0], plain, atol=1e-5)
    wide = 1 / (1 + np.exp(-stretched(stretched(scores, 28).T, 42).T))
    np.testing.assert_allclose(saliency.saliency(decoder, patches, (28, 42))[0], wide, atol=1e-5)
    with pytest.raises(ValueError, match='saliency: 6 patches are none of an image of 28 x 28 pixels'):
        saliency.saliency(decoder, patches, (28, 28))


def stretched(rows, count):
    """Rows between their neighbours, the centres of places at 1/2, the ends repeated."""
    at = np.clip((np.arange(count) + 0.5) * len(rows) / count - 0.5, 0, len(rows) - 1)
    low = np.minimum(at.astype(int), len(rows) - 2)
    part = (at - low)[:, None]
    return rows[low] * (1 - part) + rows[low + 1] * part
