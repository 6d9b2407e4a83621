"""Surprise, read from the side, is the norm of the inner gradient, and falls where a memory knows what comes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import run
from experiments import surprise as program
from jattn.mixers import MIXERS
from jattn.models import DecoderConfig
from jattn.understanding import capture
from jattn.understanding.pictures import draw_surprise
from jattn.understanding.surprise import surprise
from tests.programs import call

SOFTMAX, DELTANET, TITANS = (MIXERS[name].tiny() for name in ('softmax', 'deltanet', 'titans_lmm'))
MODELS = {
    'scanned': dict(mixer=(DELTANET,), layers=3),
    'unrolled': dict(mixer=(DELTANET,), layers=3, scan=False),
    'hybrid': dict(mixer=(SOFTMAX, TITANS), layers=3),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 16)


@functools.cache
def build(name):
    fields = dict(width=32, read_in='tokens', input_size=16, output_size=16, remat='none') | MODELS[name]
    model = DecoderConfig(**fields).make()
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))['params']


@pytest.mark.parametrize('name', MODELS)
def test_readings_are_of_every_memory_in_its_place(name):
    model, params = build(name)
    found = surprise(model, params, TOKENS)
    layers = (1,) if name == 'hybrid' else (0, 1, 2)
    assert found.layers == layers
    for site in ('surprise', 'write_size', 'state_norm'):
        value = np.asarray(getattr(found, site))
        assert value.shape == (len(layers), 2, 12, 4) and np.all(np.isfinite(value)) and np.all(value >= 0)
    tapped = capture.run(model, params, TOKENS, sites=['surprise'])
    np.testing.assert_array_equal(found.surprise[-1], tapped.at('surprise', layer=layers[-1]))


def test_a_delta_rule_is_surprised_by_its_error_and_not_by_what_it_knows():
    model, params = build('scanned')
    tokens = jnp.tile(jnp.array([[3]]), (1, 40))
    found = surprise(model, params, tokens)
    captured = capture.run(model, params, tokens, sites=['k', 'v', 'step'])
    k, v, step = (np.asarray(captured.at(site, layer=0)[0, :, 0], np.float64) for site in ('k', 'v', 'step'))
    weights = np.zeros((v.shape[-1], k.shape[-1]))
    for t in range(len(k)):
        gradient = np.outer(weights @ k[t] - v[t], k[t])
        np.testing.assert_allclose(found.surprise[0, 0, t, 0], np.linalg.norm(gradient), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.state_norm[0, 0, t, 0], np.linalg.norm(weights), rtol=1e-4, atol=1e-5)
        weights = weights - step[t] * gradient
    # The convolution has seen four equal tokens from the fourth on: the same key and value again and again.
    assert np.all(found.surprise[0, 0, 30] < 0.1 * found.surprise[0, 0, 4])


def test_nats_are_those_of_the_outputs():
    model, params = build('hybrid')
    logits, _ = model.apply({'params': params}, TOKENS)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    found = np.asarray(surprise(model, params, TOKENS).nats)
    assert np.all(np.isnan(found[:, 0]))
    for t in range(1, 12):
        np.testing.assert_allclose(found[:, t], -log_p[np.arange(2), t - 1, TOKENS[:, t]], rtol=1e-4)


def test_a_model_without_memories_is_refused():
    model = DecoderConfig(width=32, layers=1, mixer=(SOFTMAX,), read_in='tokens', input_size=16, output_size=16).make()
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)['params']
    with pytest.raises(ValueError, match='no layer of this model is a memory'):
        surprise(model, params, TOKENS)


def test_the_picture_takes_one_character_a_token(tmp_path):
    model, params = build('unrolled')
    found = surprise(model, params, TOKENS)
    draw_surprise(found, 'twelve signs', tmp_path / 'a.png', row=1)
    assert (tmp_path / 'a.png').stat().st_size > 5000
    with pytest.raises(ValueError, match='text has 3 characters, but there are 12 tokens'):
        draw_surprise(found, 'abc', tmp_path / 'b.png')


def test_the_program_draws_a_prompt_or_a_part_of_a_file(tmp_path, capsys):
    for i in range(20):
        (tmp_path / f'{i}.txt').write_text(f'line {i} of a text\n' * 20)
    base = ['--config=lm_bytes', '--size=tiny', f'--set=data.path={tmp_path}', '--set=model.mixer=deltanet']
    workdir = f'--workdir={tmp_path / "run"}'
    assert call(run, *base, '--set=training.steps=2', workdir) == 0
    assert call(program, workdir, '--prompt=line 3 of a text') == 0
    assert (tmp_path / 'run' / 'surprise.png').stat().st_size > 5000
    options = [f'--text={tmp_path / "7.txt"}', '--skip=5', '--characters=17', f'--out={tmp_path / "out"}']
    assert call(program, workdir, *options) == 0
    assert (tmp_path / 'out' / 'surprise.png').exists()
    assert 'layer 0: most surprised at the end of' in capsys.readouterr().out
    for arguments, message in (
        ([workdir], 'one --prompt or one --text'),
        ([workdir, '--prompt=a'], 'fewer than two bytes'),
        ([workdir, f'--text={tmp_path / "7.txt"}', '--skip=9999'], 'after --skip=9999'),
        ([workdir, '--text=nowhere.txt'], 'nowhere.txt: no such file'),
        (['--prompt=abc'], '--workdir is needed'),
    ):
        assert call(program, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
