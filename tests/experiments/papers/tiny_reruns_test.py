"""Every claim runs at its tiny size: no line is left unmeasured, and its picture is drawn."""

import importlib

import numpy as np
import pytest

from experiments import claims
from experiments.papers.contract import ClaimContext

QUICK = ('52',)  # the others take a minute or two, most of it compilation
MODULES = [
    pytest.param(module, marks=() if number in QUICK else pytest.mark.slow)
    for number, module in claims.names().items()
    if number != '41'  # `claims_test.py` reruns it, by the program
]


@pytest.mark.parametrize('module', MODULES)
def test_a_tiny_rerun_measures_every_line_and_draws_its_picture(module, tmp_path):
    lines = importlib.import_module(f'experiments.papers.{module}').run(ClaimContext('tiny', tmp_path))
    number, _, name = module.partition('_')
    assert len(lines) >= 8 and {line.paper for line in lines} == {number}
    assert len({line.line for line in lines}) == len(lines)
    assert all(line.holds is not None for line in lines)
    assert all(np.isfinite(line.measured) for line in lines if isinstance(line.measured, float))
    assert (tmp_path / f'{name}.png').stat().st_size > 10_000
