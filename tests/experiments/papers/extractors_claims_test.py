"""The rerun of paper 11: the parts that measure do what they say."""

import dataclasses
import importlib

import numpy as np
import pytest

from experiments.papers.cost import Cost

claims = importlib.import_module('experiments.papers.11_extractors')
SMALL = claims.SIZES['small']


def test_without_novels_their_lines_are_missing():
    missing = claims.missing()
    assert len(missing) == len(claims.ORDER) and all(line.holds is None for line in missing)
    assert [line.expected for line in missing] == ['< 0', '< 0.05', '< 0', '< 0']


@pytest.mark.parametrize('size', claims.SIZES.values(), ids=claims.SIZES)
def test_a_size_makes_its_models_with_the_row_as_their_window(size):
    made = claims.settings(size, size.recall)
    assert list(made) == ['softmax', 'she', 'he', 'we', 'me']
    for name, setting in made.items():
        assert setting.module is not None
        assert name == 'softmax' or setting.model.mixer[0].window == size.recall.tokens
        assert (setting.model.max_positions is None) == (name in ('she', 'he', 'we'))


def test_the_order_on_text_is_that_of_the_paper():
    found = {name: [dict(loss=loss)] for name, loss in dict(softmax=2.0, she=1.9, he=2.04, we=2.1, me=2.2).items()}
    assert [line.holds for line in claims.text_lines(found, SMALL)] == [True] * 4
    found |= {'she': [dict(loss=2.01)], 'he': [dict(loss=2.15)]}
    assert [line.holds for line in claims.text_lines(found, SMALL)] == [False, False, False, True]


def test_time_is_held_against_the_cost_model():
    tokens = np.array(SMALL.cost_lengths, float)
    modelled = {
        name: Cost(SMALL.cost_lengths, np.array([claims.operations(name, n, SMALL.width) for n in tokens]), tokens)
        for name in ('softmax', 'she', 'he', 'we', 'me')
    }
    assert all(line.holds for line in claims.cost_lines(modelled, SMALL))
    quadratic = dataclasses.replace(modelled['me'], seconds=1e9 * tokens**2)
    lines = claims.cost_lines(modelled | {'me': quadratic}, SMALL)
    assert [line.line for line in lines if not line.holds] == [
        'exponent of T in the time of ME, T to 4096',
        'lengths from T = 256 on at which ME is faster than softmax',
    ]
    assert lines[-1].measured == '0 of 5'
