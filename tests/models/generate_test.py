"""Generation from the state equals argmax of the whole forward, for every mixer, in a batch of unequal prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig, Sampling, generate, generate_text
from tests.marks import slow_where

PATTERNS = {name: (mixer.tiny(),) for name, mixer in MIXERS.items() if mixer.tiny().causal} | {
    'hybrid': (MIXERS['rg_lru'].tiny(), MIXERS['linear_attention'].tiny(), SoftmaxConfig(window=4, sinks=1).tiny())
}
LENGTHS, NEW = (7, 3, 5), 6
# One of every kind of state; that any split into calls is the whole is a law of the contract suite for all.
QUICK = ('softmax', 'rg_lru', 'mamba', 'gated_deltanet', 'titans_lmm', 'routing', 'landmark', 'hybrid')


def build(pattern, **changes):
    sizes = dict(width=32, layers=len(pattern) + 1, read_in='tokens', input_size=32, output_size=32)
    model = DecoderConfig(mixer=pattern, **(sizes | changes)).make()
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    return model, variables.pop('params'), variables


def prompts():
    return jax.random.randint(jax.random.key(1), (3, 7), 0, 32), jnp.array(LENGTHS)


@pytest.mark.parametrize('name', slow_where(lambda name: name not in QUICK, PATTERNS))
def test_greedy_generation_is_argmax_of_the_whole_forward(name):
    model, params, slow = build(PATTERNS[name], max_positions=16 if name == 'softmax' else None)
    tokens, lengths = prompts()
    out = generate(model, params, tokens, lengths, NEW, collections=slow)
    apply = jax.jit(model.apply)
    for row, length in enumerate(LENGTHS):
        sequence = np.concatenate([tokens[row, :length], out[row]])
        padded = np.zeros((1, 13), np.int32)  # later tokens change nothing
        padded[0, : len(sequence)] = sequence
        logits, _ = apply({'params': params, **slow}, jnp.array(padded))
        expected = np.argmax(logits[0], axis=-1)[length - 1 : length - 1 + NEW]
        np.testing.assert_array_equal(out[row], expected)


def test_sampling_limits_the_choice():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 400)

    def drawn(**fields):
        draw = lambda key: Sampling(temperature=1.0, **fields).draw(key, logits)[0]
        return np.bincount(jax.vmap(draw)(keys), minlength=4) / 400

    np.testing.assert_allclose(drawn(), [0.5, 0.3, 0.15, 0.05], atol=0.08)
    np.testing.assert_allclose(drawn(top_k=2), [0.625, 0.375, 0, 0], atol=0.08)
    np.testing.assert_allclose(drawn(top_p=0.9), [0.526, 0.316, 0.158, 0], atol=0.08)
    assert drawn(top_p=0.1)[0] == 1
    assert Sampling().draw(keys[0], logits).tolist() == [0]


def test_the_key_decides_the_draws():
    model, params, _ = build(PATTERNS['softmax'])
    tokens, lengths = prompts()
    draw = lambda seed: generate(
        model, params, tokens, lengths, NEW, key=jax.random.key(seed), sampling=Sampling(temperature=2.0)
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(new_tokens=0), 'new_tokens=0 must be at least 1'),
        (dict(new_tokens=20), r'7 prompt tokens and 20 new ones need 27, but max_positions=16'),
        (dict(new_tokens=4, capacity=10), r'need 11, but capacity=10'),
        (dict(new_tokens=4, sampling=Sampling(temperature=1.0)), 'temperature=1.0 needs a key'),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(arguments, message):
    model, params, _ = build(PATTERNS['softmax'], max_positions=16)
    tokens, lengths = prompts()
    with pytest.raises(ValueError, match=message):
        generate(model, params, tokens, lengths, **arguments)


def test_lengths_out_of_range_and_empty_prompts_are_named():
    model, params, _ = build(PATTERNS['softmax'])
    with pytest.raises(ValueError, match=r'lengths must be in \[1, T=7\], found \[0, 8\]'):
        generate(model, params, prompts()[0], jnp.array([0, 8, 3]), 2)
    with pytest.raises(ValueError, match='a prompt is empty'):
        generate_text(model, params, ['ab', ''], 2)


@pytest.mark.parametrize('fields', [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)])
def test_sampling_that_makes_no_sense_is_named(fields):
    with pytest.raises(ValueError, match=f'{next(iter(fields))}='):
        Sampling(**fields)
