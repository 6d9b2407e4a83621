"""Published models on the command line, with a tiny one of Hugging Face's form that is made here."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments import run
from jattn.contract import Context
from jattn.data import TextConfig
from jattn.interop import pretrained, rules, safetensors
from jattn.interop.families import FAMILIES
from jattn.models.generate import generate
from jattn.training import checkpoint
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
        (('--mode=train', '--pretrained=smollm2'), 'goes with --mode=generate or eval'),
        (('--mode=generate', '--workdir=runs/none', '--chat'), '--chat: goes with --pretrained'),
        (('--mode=eval', '--pretrained=smollm2'), '--config is needed'),
    ],
)
def test_a_wrong_name_of_a_published_model_is_named(capsys, arguments, message):
    assert programs.call(run, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp('text') / 'text.txt'
    path.write_text('the quick brown fox jumps over the lazy dog. ' * 60)
    return path


def flags_of(text):
    return ('--config=lm_bytes', '--size=tiny', f'--set=data.path={text}', '--set=data.tokens=32')


def test_a_published_model_is_evaluated_on_text_in_its_own_tokens(folder, text, capsys):
    assert programs.call(run, '--mode=eval', f'--pretrained={folder}', *flags_of(text)) == 0
    said = dict(part.split() for part in capsys.readouterr().out.strip().split('  '))
    data = TextConfig(path=str(text), tokens=32, tokenizer=str(folder))
    found, batches = pretrained.load(str(folder)), data.eval_batches(4, 2)
    assert data.input_size == 256 and len(batches) == 2
    losses, counts = [], []
    for batch in batches:
        context = Context(positions=batch.positions, segments=batch.segments)
        logits = found.model.apply({'params': found.params}, batch.inputs, context)[0]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1)[..., 0]
        losses.append(-float(jnp.sum(chosen * batch.mask)))
        counts.append(batch.mask.sum())
    assert float(said['eval/loss']) == pytest.approx(sum(losses) / sum(counts), rel=1e-4)
    # A token is a byte here: bits a byte are the loss in bits.
    assert float(said['eval/bits_per_byte']) == pytest.approx(float(said['eval/loss']) / np.log(2), rel=1e-4)


def test_a_run_starts_from_a_published_model_resumes_and_generates_in_its_tokens(folder, text, tmp_path, capsys):
    arguments = (*flags_of(text), f'--init_from={folder}', f'--workdir={tmp_path}', '--set=training.batch=4')
    assert programs.call(run, *arguments, '--set=training.steps=2', '--set=training.optimizer.peak_lr=1e-9') == 0
    assert f'from {folder}: ' in capsys.readouterr().out
    _, params, config = checkpoint.load(tmp_path)
    assert config.data.tokenizer == str(folder) and config.model.width == 16
    chex.assert_trees_all_close(params, pretrained.load(str(folder)).params, atol=1e-3)  # two steps
    assert programs.call(run, *arguments, '--set=training.steps=2', '--set=training.optimizer.peak_lr=1e-9') == 0
    assert 'finished already' in capsys.readouterr().out
    generation = ('--mode=generate', '--prompt=ab', '--temperature=0', '--new_tokens=5')
    assert programs.call(run, *generation, f'--workdir={tmp_path}') == 0
    own = capsys.readouterr().out
    assert programs.call(run, *generation, f'--pretrained={folder}') == 0
    assert own == capsys.readouterr().out


def test_a_run_that_cannot_start_from_a_published_model_says_why(folder, text, tmp_path, capsys):
    start = (f'--init_from={folder}', f'--workdir={tmp_path}/run')
    assert programs.call(run, '--config=mqar', *start) == 2
    assert programs.call(run, '--config=associative_recall', *start) == 2
    assert 'reads text, but data is AssociativeRecall' in capsys.readouterr().err
    assert programs.call(run, *flags_of(text), '--set=data.tokens=64', *start) == 2
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('said', ['ab', 'äö 12 €'])
def test_the_bytes_of_tokens_add_up_to_those_of_the_text(folder, said):
    words = pretrained.load_tokenizer(str(folder))
    assert words.byte_lengths()[words.encode(said)].sum() == len(said.encode())
