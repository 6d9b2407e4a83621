"""The rerun of paper 48: the parts that measure do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.papers.aaren import costs, sequences, settings
from experiments.papers.contract import ClaimContext
from experiments.papers.cost import Cost
from jattn.models.encoder import EncoderConfig

TINY, SMALL = settings.SIZES['tiny'], settings.SIZES['small']


def test_what_is_exact_holds(tmp_path):
    lines = [costs.exact_line(ClaimContext('tiny', tmp_path)), costs.parameter_line(SMALL), *costs.state_lines(SMALL)]
    assert all(line.holds for line in lines)


@pytest.mark.parametrize('size', settings.SIZES.values(), ids=settings.SIZES)
def test_the_models_of_a_setting_differ_in_their_mixer_alone(size, tmp_path):
    trained = settings.settings(size, ClaimContext('tiny', tmp_path))
    assert {where for where, _ in trained} == set(sequences.CLAIMS)
    for where in sequences.CLAIMS:
        own, other = (trained[where, name] for name in (settings.AAREN, settings.SOFTMAX))
        model = dataclasses.replace(own.model, mixer=other.model.mixer)
        assert dataclasses.replace(own, model=model) == other and own.module is not None
        assert isinstance(own.model, EncoderConfig) == (where == settings.CLASSES)


def test_without_a_data_folder_its_two_settings_are_missing(tmp_path):
    found = {(where, name): [{}] for where, name in settings.settings(SMALL, ClaimContext('small', tmp_path))}
    assert {where for where, _ in found} == {'events', 'control', 'recall'}
    found = {
        (where, name): [{sequences.CLAIMS[where][0]: 1.0 if name == settings.AAREN else 2.0}] for where, name in found
    }
    lines = sequences.lines(found, ClaimContext('small', tmp_path), SMALL)
    assert [line.holds for line in lines] == [None, None, True, False, True]
    assert [line.expected for line in lines[:2]] == ['< 1.05', '> -0.02']
    assert ['ett' in lines[0].note, 'ucr_uea' in lines[1].note] == [True, True]


def test_a_flight_is_scored_between_doing_nothing_and_the_best_gain(tmp_path):
    setting = settings.settings(TINY, ClaimContext('tiny', tmp_path))['control', settings.AAREN]
    batch = setting.data.sample(jax.random.key(0), 2)
    variables = nn.unbox(jax.jit(setting.module.init)(jax.random.key(1), batch.inputs))
    still = jax.tree.map(jnp.zeros_like, variables)
    assert abs(sequences.flight_score(setting, still, 2000, jax.random.key(2))) < 0.1


def test_costs_say_from_which_length_stepping_is_faster(tmp_path):
    lengths = np.array([512.0, 1024, 2048, 4096, 8192, 16384])
    power = lambda n: Cost(SMALL.cost_lengths, (lengths / 1000) ** n, lengths)
    found = {}
    for name, exponents in (('Aaren', (1, 0, 1)), ('softmax', (2, 1, 2))):
        found |= {f'{name}, {of}': power(n) for of, n in zip(('prefill', 'steps', 'stream'), exponents)}
    lines = costs.lines(found, ClaimContext('small', tmp_path), SMALL)
    assert all(line.holds for line in lines)
    assert lines[-1].note.startswith('faster from T = 1024 on; 0.51 at 512')
