"""Published models on the command line, with a tiny one of Hugging Face's form that is made here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments import run
from jattn.interop import pretrained, rules, safetensors
from jattn.interop.families import FAMILIES
from jattn.models.generate import generate
from tests import programs

CONFIG = {
    'model_type': 'llama',
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'num_key_value_heads': 1,
    'rms_norm_eps': 1e-5,
    'vocab_size': 256,
    'max_position_embeddings': 40,
    'tie_word_embeddings': True,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('published')
    (path / 'config.json').write_text(json.dumps(CONFIG))
    cfg = FAMILIES['llama'].trunk(CONFIG)
    shapes = rules.abstract_params(cfg, *FAMILIES['llama'].example(cfg))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), shapes)
    safetensors.write(path / 'model.safetensors', rules.save(FAMILIES['llama'].rules(cfg), params, cfg))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.save(str(path / 'tokenizer.json'))
    return path


def test_a_published_model_continues_a_prompt_as_its_ids_say(folder, capsys):
    arguments = ('--mode=generate', '--prompt=ab', '--temperature=0', '--new_tokens=5')
    assert programs.call(run, *arguments, f'--pretrained={folder}') == 0
    found = pretrained.load(str(folder))
    prompt = jnp.array([found.tokenizer.encode('ab')])
    new = generate(found.model, found.params, prompt, jnp.array([2]), 5)[0]
    assert capsys.readouterr().out == f'ab{found.tokenizer.decode(new)}\n'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--prompt=a', '--new_tokens=40'), 'are more than its context of 40'),
        (('--prompt=a', '--chat'), 'no <|im_start|>'),
        (('--prompt=', '--new_tokens=2'), 'a prompt is empty'),
    ],
)
def test_what_a_published_model_cannot_do_is_named(folder, capsys, arguments, message):
    assert programs.call(run, '--mode=generate', f'--pretrained={folder}', *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--mode=generate', '--pretrained=smollm'), "did you mean 'smollm2'?"),
        (('--mode=generate', '--pretrained=no/such'), 'no such file or folder'),
        (('--mode=train', '--pretrained=smollm2'), 'goes with --mode=generate'),
    ],
)
def test_a_wrong_name_of_a_published_model_is_named(capsys, arguments, message):
    assert programs.call(run, *arguments) == 2
    assert message in capsys.readouterr().err
