"""A decoder of ours goes out as a Llama and comes back with the same logits; what a Llama cannot hold is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import load, safetensors
from jattn.interop.export import export
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.cache import PlainCache
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.longheads_cache import LongHeadsCache
from jattn.nn.rotary import RotaryScaling
from tests.parameters import perturbed_params

MIXER = SoftmaxConfig(heads=4, key_heads=2)
SWIGLU = FeedForwardConfig(expansion=8 / 3, activation='silu', gated=True)  # 85.33 units are 85
CFG = DecoderConfig(
    width=32, layers=3, mixer=(MIXER,), feed_forward=SWIGLU, read_in='tokens', input_size=29, output_size=29
)
HELD = {
    'plain': {},
    'unrolled': dict(scan=False, mixer=(MIXER, dataclasses.replace(MIXER, head_dim=8, cache=PlainCache()))),
    'tied': dict(tied=True),
    'scaled': dict(tied=True, embed_scale=0.3, norm_epsilon=1e-5),
    'biases': dict(mixer=(dataclasses.replace(MIXER, bias='all', rotary_base=500.0),), embed_scale=1.0),
    'long': dict(mixer=(dataclasses.replace(MIXER, rotary_scaling=RotaryScaling(factor=4.0, original=32)),)),
    'longer': dict(mixer=(dataclasses.replace(MIXER, rotary_scaling=RotaryScaling(factor=2.0, original=None)),)),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 29)


def start(cfg):
    return perturbed_params(cfg, TOKENS, 0.1)


def exported(name, folder):
    """Our model, its logits; written to the folder."""
    cfg = dataclasses.replace(CFG, **HELD[name])
    params = start(cfg)
    export(cfg, params, folder, longest=64)
    return jax.jit(cfg.make().apply)({'params': params}, TOKENS)[0]


@pytest.mark.parametrize('name', HELD)
def test_a_decoder_comes_back_with_the_same_logits(name, tmp_path):
    logits = exported(name, tmp_path / 'new')
    found = load(str(tmp_path / 'new'))
    own, _ = jax.jit(found.model.apply)({'params': found.params}, TOKENS)
    np.testing.assert_allclose(own, logits, atol=1e-5)
    assert found.longest == 64 and found.tokenizer is None
    assert ('lm_head.weight' in safetensors.read(tmp_path / 'new')) == (not found.model.cfg.tied)


@pytest.mark.slow
@pytest.mark.parametrize('name', HELD)
def test_transformers_reads_the_folder_and_gives_the_same_logits(name, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    logits = exported(name, tmp_path)
    model, said = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(np.array(TOKENS)).long()).logits.numpy()
    np.testing.assert_allclose(theirs, logits, atol=1e-5)
    assert model.config.eos_token_id is None and model.config.max_position_embeddings == 64


def mixed(**changes):
    return dict(mixer=(MIXER, dataclasses.replace(MIXER, **changes)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(mixer=(MIXERS['rg_lru'],)), 'mixer.0=RGLRUConfig must be SoftmaxConfig in a Llama'),
        (dict(mixer=(MIXERS['mixture_of_heads'],)), 'mixer.0=.* must be SoftmaxConfig in a Llama'),
        (mixed(window=4), 'mixer.1.window=4 must be None in a Llama'),
        (mixed(heads=2, key_heads=2), 'mixer.1.heads=2 must be 4 in a Llama'),
        (mixed(rotary_base=None), 'mixer.1.rotary_base=None must be a number in a Llama'),
        (mixed(rotary_fraction=0.5), 'mixer.1.rotary_fraction=0.5 must be 1.0 in a Llama'),
        (mixed(qk_norm=True), 'mixer.1.qk_norm=True must be False in a Llama'),
        (mixed(softcap=3.0), 'mixer.1.softcap=3.0 must be None in a Llama'),
        (mixed(scale=0.5), 'mixer.1.scale=0.5 must be None in a Llama'),
        (mixed(cache=LongHeadsCache()), "mixer.1.cache='LongHeadsCache' must be None in a Llama"),
        (dict(mixer=(dataclasses.replace(MIXER, bias='qkv'),)), "mixer.0.bias='qkv' must be 'all' in a Llama"),
        (dict(feed_forward=None), 'feed_forward=None must be FeedForwardConfig in a Llama'),
        (dict(feed_forward=FeedForwardConfig()), "feed_forward.activation='gelu' must be 'silu' in a Llama"),
        (dict(feed_forward=FeedForwardConfig(activation='silu')), 'feed_forward.gated=False must be True in a Llama'),
        (dict(norm='layer'), "norm='layer' must be 'rms' in a Llama"),
        (dict(block='sandwich'), "block='sandwich' must be 'pre' in a Llama"),
        (dict(cross=CrossAttentionConfig()), "cross='CrossAttentionConfig' must be None in a Llama"),
        (dict(layer_scale=0.1), 'layer_scale=0.1 must be None in a Llama'),
        (dict(embed_norm=True), 'embed_norm=True must be False in a Llama'),
        (dict(softcap=30.0), 'softcap=30.0 must be None in a Llama'),
        (dict(max_positions=64), 'max_positions=64 must be None in a Llama'),
        (dict(read_in='linear'), "read_in='linear' must be 'tokens' in a Llama"),
        (dict(output_size=5), 'output_size=5 must be 29 in a Llama'),
    ],
)
def test_what_a_llama_cannot_hold_is_named_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export(dataclasses.replace(CFG, **changes), {}, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_the_config_is_plain_json_of_a_llama(tmp_path):
    exported('biases', tmp_path)
    said = json.loads((tmp_path / 'config.json').read_text())
    assert {name: said[name] for name in ('model_type', 'hidden_size', 'intermediate_size', 'attention_bias')} == {
        'model_type': 'llama',
        'hidden_size': 32,
        'intermediate_size': 85,
        'attention_bias': True,
    }
    assert jnp.isclose(said['rope_theta'], 500.0)
