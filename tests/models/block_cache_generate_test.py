"""Generation with a cache that reads a part of the past equals the whole forward; prompts of unequal lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.models import DecoderConfig, generate
from jattn.nn.landmark_cache import LandmarkCache
from jattn.nn.longheads_cache import LongHeadsCache

LENGTHS, NEW, TOKENS = (11, 4, 8), 8, 19
PLAIN = SoftmaxConfig(heads=2)
MIXERS = {
    'longheads': dataclasses.replace(PLAIN, cache=LongHeadsCache(chunk=2, chunks=4)),
    'landmark': LandmarkConfig(heads=2, block=4),
    'landmark[retrieval]': LandmarkConfig(heads=2, block=3, cache=LandmarkCache(block=3, retrieved=2)),
}


def decoder(mixer):
    sizes = dict(width=32, layers=2, read_in='tokens', input_size=32, output_size=32, feed_forward=None)
    return DecoderConfig(mixer=(mixer,), **sizes).make()


@pytest.fixture(scope='module')
def params():
    """Those of plain softmax attention: the policies have none of their own."""
    return nn.unbox(jax.jit(decoder(PLAIN).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))['params']


@pytest.mark.parametrize('name', MIXERS)
def test_greedy_generation_is_argmax_of_the_whole_forward(name, params):
    model = decoder(MIXERS[name])
    prompts = jax.random.randint(jax.random.key(1), (3, max(LENGTHS)), 0, 32)
    out = generate(model, params, prompts, jnp.array(LENGTHS), NEW)
    sequences = np.zeros((3, TOKENS), np.int32)  # later tokens change nothing
    for row, length in enumerate(LENGTHS):
        sequences[row, : length + NEW] = np.concatenate([prompts[row, :length], out[row]])
    logits, _ = jax.jit(model.apply)({'params': params}, jnp.array(sequences))
    expected = np.argmax(logits, axis=-1)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(out[row], expected[row, length - 1 : length - 1 + NEW])
    plain, _ = jax.jit(decoder(PLAIN).apply)({'params': params}, jnp.array(sequences))
    assert np.max(np.abs(plain - logits)[0, length + NEW - 1 :]) > 1e-3  # something was left out
