"""Whisper tiny.en from its package: its marks, what it makes of a sound, parity with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.interop import ctranslate2, load
from jattn.interop.pretrained import PRETRAINED
from jattn.interop.whisper import RATE, log_mel

try:
    PATH = PRETRAINED['whisper_tiny'].path()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

START, NO_TIMES, END = 50257, 50362, 50256
# What transformers gave for the sound below: three numbers of a token of the source, and of two places' logits.
FEATURES = (-1.123855, 0.328457, -0.534459)
FIRST, LAST = (10.281178, 7.615150, 5.878514), (11.714061, 8.368366, 5.077807)


@pytest.fixture(scope='module')
def found():
    return load('whisper_tiny')


@pytest.fixture(scope='module')
def heard(found):
    """(ids, frames, what the encoder makes of them, logits)."""
    time = np.arange(2 * RATE) / RATE
    sound = 0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) * np.sin(9 * time) ** 2
    ids, frames = jnp.array([[START, NO_TIMES, *found.tokenizer.encode(' One two.')[2:-1]]]), log_mel(sound)[None]
    encoder, decoder = found.model.cfg.sides()
    source = jax.jit(encoder.make().apply)({'params': found.params['encoder']}, frames)[0]
    logits = jax.jit(decoder.make().apply)({'params': found.params['decoder']}, ids, Context(source=source))[0]
    return ids, frames, source, logits


def test_a_text_stands_between_its_marks_and_the_model_has_room_for_448_tokens(found):
    assert found.tokenizer.encode('') == [START, NO_TIMES, END] and found.tokenizer.end == END
    assert found.longest == 448 and found.model.cfg.output_size == 51864
    assert found.tokenizer.decode(found.tokenizer.encode(' Zero.')[2:-1]) == ' Zero.'


def test_features_and_logits_are_those_that_transformers_gave(heard):
    ids, _, source, logits = heard
    assert source.shape == (1, 1500, 384) and logits.shape == (1, ids.shape[1], 51864)
    np.testing.assert_allclose(source[0, 100, :3], FEATURES, atol=1e-4)
    np.testing.assert_allclose(logits[0, 1, :3], FIRST, atol=3e-4)
    np.testing.assert_allclose(logits[0, -1, :3], LAST, atol=3e-4)


@pytest.mark.slow
def test_every_feature_and_logit_is_that_of_transformers(heard):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    ids, frames, source, logits = heard
    said = transformers_says(torch, transformers, ids, frames)
    np.testing.assert_allclose(source, said.encoder_last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(logits, said.logits, atol=3e-4)
    assert np.ptp(logits) > 20


def transformers_says(torch, transformers, ids, frames):
    """What the model of transformers with the file's tensors says."""
    config, tensors = ctranslate2.read(PATH)
    config.pop('model_type')
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**config, pad_token_id=END)).eval()
    theirs = {f'model.{name}': torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
    loaded = model.load_state_dict(theirs, strict=False)
    assert loaded.missing_keys == ['proj_out.weight'] and not loaded.unexpected_keys  # the read-out is tied
    with torch.no_grad():
        return model(
            torch.from_numpy(frames).permute(0, 2, 1), decoder_input_ids=torch.from_numpy(np.array(ids)).long()
        )
