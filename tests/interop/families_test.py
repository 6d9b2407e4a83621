"""Tables of tensors: operations can be undone, nothing is left over on either side, older configs mean the same."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import pretrained, safetensors
from jattn.interop.families import FAMILIES
from jattn.interop.family import need
from jattn.interop.gpt2 import split_rows, split_thirds
from jattn.interop.gpt_neox import by_head
from jattn.interop.rules import (
    AS_IS,
    PLUS_ONE,
    TRANSPOSED,
    Renamed,
    abstract_params,
    join_heads,
    load,
    save,
    split_bias,
    split_heads,
)
from jattn.models.decoder import DecoderConfig
from tests.interop.tiny_models import CONFIGS, GEMMA, WINDOW, golden

OPERATIONS = {
    'as_is': (AS_IS, (3, 4)),
    'transposed': (TRANSPOSED, (3, 4)),
    'plus_one': (PLUS_ONE, (4,)),
    'split_heads': (split_heads(3), (6, 4)),
    'split_bias': (split_bias(3), (6,)),
    'join_heads': (join_heads(3), (4, 6)),
    'split_thirds': (split_thirds(3), (4, 18)),
    'split_thirds of a bias': (split_thirds(3), (18,)),
    'split_rows': (split_rows(3), (6, 4)),
    'by_head': (by_head(3), (18, 4)),
    'by_head of a bias': (by_head(3), (18,)),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_is_undone_by_its_inverse(name):
    operation, shape = OPERATIONS[name]
    theirs = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (back,) = operation.save(*operation.load(theirs))
    np.testing.assert_array_equal(back, theirs)


def test_projections_of_heads_multiply_as_theirs_do():
    x, draw = np.random.RandomState(0).randn(4), np.random.RandomState(1)
    query, out = draw.randn(6, 4), draw.randn(4, 6)
    (ours,) = split_heads(3).load(query)
    np.testing.assert_allclose(np.einsum('d,dhk->hk', x, ours).ravel(), query @ x)
    z = draw.randn(6)
    (ours,) = join_heads(3).load(out)
    np.testing.assert_allclose(np.einsum('hk,hkd->d', z.reshape(3, 2), ours), out @ z)
    fused = draw.randn(18, 4)
    for part, ours in enumerate(by_head(3).load(fused)):
        np.testing.assert_allclose(np.einsum('d,dhk->hk', x, ours), (fused @ x).reshape(3, 3, 2)[:, part])
    for part, ours in enumerate(split_thirds(3).load(fused.T)):
        np.testing.assert_allclose(np.einsum('d,dhk->hk', x, ours), (x @ fused.T).reshape(3, 3, 2)[part])


def build(name, change=lambda tensors: None, **fields):
    config, tensors, _ = golden(name)
    change(tensors)
    return pretrained.build(config | fields, tensors, 'here')


NORM = 'model.layers.1.input_layernorm.weight'
QUERY = 'model.layers.1.self_attn.q_proj.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop(NORM), f'here does not fit its table: missing there: {NORM}; not filled here: body'),
        (lambda t: t.update(odd=np.ones(3)), 'here does not fit its table: not used: odd$'),
        (lambda t: t.update({NORM: np.ones(31)}), rf'{NORM} has shape \(31,\) for body.*mixer_norm.scale \(32,\)'),
        (lambda t: t.update({QUERY: np.ones((30, 32))}), rf'here: {QUERY} has shape \(30, 32\), not one for mixer.q_p'),
        (
            lambda t: t.update({QUERY: np.ones(32)}),
            rf'here: {QUERY} has shape \(32,\), not one for mixer.q_proj.kernel',
        ),
        (lambda t: t.update({QUERY: np.ones((16, 32))}), rf'here: {QUERY} has shape \(32, 4, 4\) for body'),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build('llama', change)


def test_a_long_list_of_names_is_cut():
    with pytest.raises(ConfigError, match=r'not used: (x\d, ){7}x7 and 3 more$'):
        build('llama', lambda t: t.update({f'x{n}': np.ones(1) for n in range(11)}))


def test_a_parameter_that_no_rule_fills_and_a_rule_of_no_parameter_are_named():
    config, tensors, _ = golden('llama')
    family = FAMILIES['llama']
    cfg = family.trunk(config)
    shapes = abstract_params(cfg, *family.example(cfg))
    table = family.rules(cfg)
    short = {name: tensor for name, tensor in tensors.items() if name != 'model.norm.weight'}
    with pytest.raises(ConfigError, match='not filled here: final_norm.scale$'):
        load([rule for rule in table if rule.ours != 'final_norm.scale'], short, shapes, cfg, 'here')
    with pytest.raises(ConfigError, match='model.norm.weight would fill last_norm.scale, which this model does not'):
        wrong = [dataclasses.replace(r, ours='last_norm.scale') if r.ours == 'final_norm.scale' else r for r in table]
        load(wrong, tensors, shapes, cfg, 'here')


@pytest.mark.parametrize('name', ['qwen2', 'gpt2'])
def test_the_copy_of_a_tied_embedding_is_left_alone_and_an_untied_read_out_is_needed(name):
    head = 'lm_head.weight'
    _, params = build(name, lambda t: t.update({head: np.zeros((97, 32), np.float32)}))
    assert 'read_out' not in params and float(abs(params['embedding']).max()) > 0
    with pytest.raises(ConfigError, match=f'missing there: {head}; not filled here: read_out.kernel'):
        build(name, tie_word_embeddings=False)


def test_prefixes_and_buffers_of_other_files_are_passed_over():
    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix('transformer.')] = tensors.pop(name)
        for n in range(2):
            tensors[f'h.{n}.attn.bias'] = np.ones((1, 1, 64, 64), bool)
            tensors[f'h.{n}.attn.masked_bias'] = np.float32(-1e4)

    jax.tree.map(np.testing.assert_array_equal, build('gpt2', older)[1], build('gpt2')[1])
    buffers = {f'gpt_neox.layers.0.attention.{name}': 0 for name in ('bias', 'masked_bias', 'rotary_emb.inv_freq')}
    with_buffers = build('gpt_neox', lambda t: t.update(buffers))
    jax.tree.map(np.testing.assert_array_equal, with_buffers[1], build('gpt_neox')[1])
    assert 'layers.0.attention.dense.bias' in Renamed(
        {'layers.0.attention.dense.bias': 0}, '', FAMILIES['gpt_neox'].ignored
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_scanned_and_unrolled_trunks_save_the_same_tensors(name):
    config, tensors, _ = golden(name)
    family = FAMILIES[config['model_type']]
    flat = dataclasses.replace(family.trunk(config), scan=False)
    own = Renamed(tensors, family.prefix)
    params = load(family.rules(flat), own, abstract_params(flat, *family.example(flat)), flat, 'here')
    for path, tensor in save(family.rules(flat), params, flat).items():
        np.testing.assert_array_equal(tensor, own[path], err_msg=path)


# As the files of earlier years say it -> as transformers says it now, a tiny model of each.
OLDER = {
    'llama3': dict(rope_theta=500.0, rope_scaling=dict(CONFIGS['llama3']['rope_parameters'])),
    'mistral': dict(rope_theta=10_000.0, rope_scaling=None),
    'gpt_neox_serial': dict(rotary_pct=0.5, rotary_emb_base=10_000),
    'gpt_neox': {},
    'gemma': dict(hidden_act='gelu', hidden_activation=None),
    'gemma2': dict(hidden_act='gelu_pytorch_tanh', rope_theta=10_000.0),
    'gemma3': dict(
        rope_theta=10_000.0, rope_local_base_freq=100.0, rope_scaling=dict(type='linear', factor=2.0),
        sliding_window_pattern=6,
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OLDER)
def test_an_older_config_means_the_same(name):
    config, _, _ = golden(name)
    family = FAMILIES[config['model_type']]
    dropped = ('rope_parameters', 'layer_types', 'hidden_activation', 'tie_word_embeddings', '_sliding_window_pattern')
    kept = {field: value for field, value in config.items() if field not in dropped or name == 'llama3'}
    kept.pop('rope_parameters', None)
    assert family.trunk(kept | OLDER[name]) == family.trunk(config)


def test_windows_of_gemma_alternate_and_have_their_own_rotary_bases():
    gemma2, gemma3 = (
        FAMILIES[kind].trunk(golden(name)[0]) for kind, name in (('gemma2', 'gemma2'), ('gemma3_text', 'gemma3'))
    )
    assert [mixer.window for mixer in gemma2.mixers()] == [WINDOW, None, WINDOW]
    assert [mixer.window for mixer in gemma3.mixers()] == [WINDOW] * 5 + [None, WINDOW]
    assert [mixer.rotary_base for mixer in gemma3.mixers()] == [100.0] * 5 + [10_000.0, 100.0]
    assert (len(gemma2.mixer), len(gemma3.mixer)) == (2, 6)
    published = FAMILIES['gemma3_text'].trunk(dict(GEMMA, model_type='gemma3_text'))  # the defaults of its family
    assert published.mixer[0].rotary_base == 1e4 and published.mixer[0].scale == 1 / 16


@pytest.mark.parametrize(
    ('name', 'fields', 'message'),
    [
        ('llama', dict(model_type='lama'), "here: model_type='lama' is not read; did you mean 'llama'"),
        ('llama', dict(model_type=None), 'here: model_type=None is not read; there are: llama, mistral'),
        ('llama', dict(hidden_act='gelu'), "hidden_act='gelu' is not one of 'silu'"),
        ('llama', dict(rope_scaling=dict(rope_type='yarn')), "rope_scaling of type 'yarn' is not one of 'default'"),
        ('qwen2', dict(use_sliding_window=True), 'use_sliding_window with max_window_layers above 0 is not read'),
        ('qwen3', dict(rms_norm_eps=1e-5), 'rms_norm_eps=1e-05 with norms of heads, which have 1e-6 here'),
        ('gpt2', dict(activation_function='relu'), "activation_function='relu' is not one of 'gelu_new'"),
        (
            'gpt2',
            dict(scale_attn_by_inverse_layer_idx=True),
            'scale_attn_by_inverse_layer_idx=True is not one of False',
        ),
        ('gpt_neox', dict(hidden_act='relu'), "hidden_act='relu' is not one of 'gelu'"),
        ('gemma', dict(hidden_act='relu'), "hidden_act='relu' is not one of 'gelu_pytorch_tanh', 'gelu'"),
        ('gemma2', dict(hidden_act='gelu'), "hidden_act='gelu' is not one of 'gelu_pytorch_tanh', which"),
        ('gemma3', dict(attn_logit_softcapping=50.0), 'attn_logit_softcapping=50.0 is not one of None'),
        ('gemma3', dict(rms_norm_eps=1e-5), 'rms_norm_eps=1e-05 with norms of heads'),
        ('gemma3', dict(layer_types=['chunked'] * 7), "layer_types='chunked' is not one of 'sliding_attention'"),
        ('gemma3', dict(use_bidirectional_attention=True), 'use_bidirectional_attention=True is not one of False'),
    ],
)
def test_a_config_that_is_not_read_is_named(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **fields)


def test_qwen_windows_are_read_where_every_layer_has_one():
    windowed = build('qwen2', use_sliding_window=True, max_window_layers=0, sliding_window=4)[0]
    assert windowed.mixer[0].window == 4 and build('qwen2')[0].mixer[0].window is None


def test_a_field_that_is_absent_has_its_first_legal_value():
    assert need({}, 'attention_bias', [False, True]) is False


def test_models_are_found_by_name_path_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such model; did you mean 'smollm2'.*or give a path"):
        pretrained.load('smollm')
    with pytest.raises(FileNotFoundError, match='--pretrained=runs/none: no such file or folder'):
        pretrained.load('runs/none')
    with pytest.raises(FileNotFoundError, match='no config.json: not a Hugging Face folder'):
        pretrained.load(str(tmp_path))
    config, tensors, _ = golden('llama')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match='no model.safetensors'):
        pretrained.load(str(tmp_path))
    safetensors.write(tmp_path / 'model.safetensors', tensors)
    found = pretrained.load(str(tmp_path), dtype='bfloat16')
    assert pretrained.exists(str(tmp_path)) and isinstance(found.model.cfg, DecoderConfig)
    assert found.model.cfg.dtype == 'bfloat16' and found.params['embedding'].dtype == np.float32
    found.check_length(64)
    with pytest.raises(ConfigError, match='65 tokens are more than its context of 64'):
        found.check_length(65)
