"""Parity with transformers: tiny models of every family, saved by it, read by us; logits, every layer, states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.interop import load
from jattn.understanding import capture
from tests.interop.tiny_models import CONFIGS, TOKENS, reference, tokens

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

pytestmark = pytest.mark.slow
LENGTHS = np.array([TOKENS, 7])
REAL = np.arange(TOKENS)[None] < LENGTHS[:, None]


def theirs(model, inputs, mask):
    """Logits, and the stream behind every layer."""
    streams = []
    keep = lambda module, args, out: streams.append((out[0] if isinstance(out, tuple) else out).numpy())
    inner = model.base_model
    hooks = [layer.register_forward_hook(keep) for layer in (inner.h if hasattr(inner, 'h') else inner.layers)]
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs).long(), attention_mask=torch.from_numpy(mask).long()).logits
    for hook in hooks:
        hook.remove()
    return logits.numpy(), streams


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    """name -> (their model, ours), both made once."""
    models = {}

    def get(name):
        if name not in models:
            model, folder = reference(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            models[name] = (model, load(str(folder)))
        return models[name]

    return get


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_every_layer_are_those_of_transformers(opened, name):
    model, ours = opened(name)
    logits, streams = theirs(model, tokens(), REAL)
    found = capture.run(
        ours.model, ours.params, tokens(), sites=['resid_post'], context=Context(segments=jnp.int32(REAL))
    )
    assert len(streams) == ours.model.cfg.layers and np.std(logits[REAL]) > 0.3
    for layer, stream in enumerate(streams):
        own = found.at('resid_post', layer)
        np.testing.assert_allclose(own[REAL], stream[REAL], atol=1e-5, rtol=1e-5, err_msg=f'layer {layer}')
    np.testing.assert_allclose(found.outputs[REAL], logits[REAL], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_prefill_and_steps_give_the_logits_of_transformers(opened, name):
    model, ours = opened(name)
    logits, _ = theirs(model, tokens(), np.ones_like(REAL))
    step = jax.jit(ours.model.apply)
    state, calls = ours.model.cfg.init_state(2, TOKENS), []
    for first, last in ((0, 8), (8, 9), (9, 10), (10, 11)):
        own, state = step({'params': ours.params}, tokens()[:, first:last], Context(), state)
        calls.append(own)
    np.testing.assert_allclose(np.concatenate(calls, axis=1), logits, atol=1e-5, rtol=1e-5)


def test_a_sharded_folder_is_the_same_model(opened, tmp_path):
    model, whole = opened('qwen3')
    model.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
    jax.tree.map(np.testing.assert_array_equal, load(str(tmp_path)).params, whole.params)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_files_are_exact(opened, tmp_path, dtype):
    model, whole = opened('llama')
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model.float()
    jax.tree.map(np.testing.assert_array_equal, load(str(tmp_path)).params, whole.params)
