"""Whisper: parity with transformers in every layer of both sides; its frames; generation behind a source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.contract import Context
from jattn.interop import load, pretrained
from jattn.interop.whisper import HOP, RATE, WINDOW, log_mel, mel_filters
from jattn.models.generate import generate
from jattn.understanding import capture
from tests.interop.tiny_models import SPEECH, answer, frames, golden, reads, reference, tokens


@pytest.mark.slow
@pytest.mark.parametrize('name', SPEECH)
def test_logits_and_every_layer_are_those_of_transformers(name, tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model = reference(name)
    model.save_pretrained(tmp_path)
    ours = load(str(tmp_path))
    with torch.no_grad():
        logits, streams = answer(name, model)
    inputs, context = reads(name)
    found = capture.run(ours.model, ours.params, inputs, sites=['resid_post'], context=context)
    # Theirs are behind the last norm in the last layer of a side.
    assert len(streams) == len(found.values['resid_post']) == 5 and np.std(logits) > 0.3
    for layer in (0, 2, 3):
        np.testing.assert_allclose(found.at('resid_post', layer), streams[layer], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found.outputs, logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope='module')
def tiny():
    config, tensors, _ = golden('whisper')
    cfg, params = pretrained.build(config, tensors, 'here')
    return cfg.make(), params


def test_generation_behind_a_source_is_the_most_likely_token_of_whole_calls(tiny):
    model, params = tiny
    prompts, lengths = tokens(2)[:, :3], jnp.array([3, 2])
    source = jnp.asarray(frames(2))
    new = generate(model, params, prompts, lengths, 4, source=source)
    whole = jax.jit(model.apply)
    for row in range(2):
        words = list(prompts[row, : lengths[row]])
        for token in new[row].tolist():
            padded = jnp.array([words + [0] * (7 - len(words))])
            logits, _ = whole({'params': params}, padded, Context(source=source[row : row + 1]))
            assert token == int(jnp.argmax(logits[0, len(words) - 1]))
            words.append(token)
    with pytest.raises(ValueError, match='3 prompt tokens and 14 new ones need 17, but max_positions=16'):
        generate(model, params, prompts, lengths, 14, source=source)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(activation_function='relu'), "activation_function='relu' is not one of 'gelu'"),
        (dict(scale_embedding=True), 'scale_embedding=True is not one of False'),
        (dict(tie_word_embeddings=False), 'tie_word_embeddings=False is not one of True'),
    ],
)
def test_a_config_that_is_not_read_is_named(fields, message):
    config, tensors, _ = golden('whisper')
    with pytest.raises(ConfigError, match=message):
        pretrained.build(config | fields, tensors, 'here')


def test_both_sides_have_the_dtype_that_was_asked_for():
    config, tensors, _ = golden('whisper')
    cfg, _ = pretrained.build(config, tensors, 'here', 'bfloat16')
    assert {side.dtype for side in cfg.sides()} == {'bfloat16'}


def test_filters_are_triangles_of_unit_area_equally_spaced_on_the_scale_of_slaney():
    filters, width = mel_filters(80), RATE / WINDOW
    np.testing.assert_allclose(filters[40:].sum(axis=1) * width, 1, rtol=0.08)  # sums of few places
    centres = filters.argmax(axis=1) * width
    steps = np.arange(1, 81) * (15 + 27 * np.log(8) / np.log(6.4)) / 81
    expected = np.where(steps < 15, steps * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (steps - 15)))
    np.testing.assert_allclose(centres, expected, atol=width / 2 + 1e-6)


@pytest.mark.parametrize('hertz', [300, 1000, 3000])
def test_a_tone_is_loudest_in_the_filter_around_it_at_any_rate(hertz):
    at = {rate: log_mel(np.sin(2 * np.pi * hertz * np.arange(rate) / rate), rate, seconds=1.0) for rate in (8000, RATE)}
    expected = mel_filters(80)[:, round(hertz * WINDOW / RATE)].argmax()
    for levels in at.values():
        assert levels.shape == (100, 80) and np.all(abs(levels[5:-5].argmax(axis=1) - expected) <= 1)
    np.testing.assert_allclose(at[8000][5:-5].max(axis=1), at[RATE][5:-5].max(axis=1), atol=1e-4)


def test_frames_are_cut_padded_and_no_quieter_than_eight_decades_below_the_loudest():
    sound = np.random.default_rng(0).normal(size=RATE) / 10
    levels = log_mel(sound)
    assert levels.shape == (3000, 80) and levels.dtype == np.float32
    np.testing.assert_allclose(levels.max() - levels.min(), 2, atol=1e-6)  # a level is a quarter of a decade
    np.testing.assert_allclose(levels[200:], levels.min())
    np.testing.assert_array_equal(log_mel(sound, seconds=0.5).shape, (RATE // 2 // HOP, 80))


@pytest.mark.slow
def test_frames_are_those_of_transformers():
    transformers = pytest.importorskip('transformers')
    sound = np.random.default_rng(0).normal(size=3 * RATE) * np.sin(np.arange(3 * RATE) / 3000)
    theirs = transformers.WhisperFeatureExtractor()(sound, sampling_rate=RATE, return_tensors='np')
    np.testing.assert_allclose(log_mel(sound), theirs['input_features'][0].T, atol=5e-5)
