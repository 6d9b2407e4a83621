"""Tiny models of every family give the logits that transformers gave (`make_golden.py`), and are saved as they were.

Neither torch nor transformers is needed; `huggingface_test.py` compares with them anew.
"""

import jax
import numpy as np
import pytest

from jattn.interop import pretrained
from jattn.interop.families import FAMILIES
from jattn.interop.rules import Renamed, save
from tests.interop.tiny_models import CONFIGS, GOLDEN, golden, tokens


def test_every_family_of_decoders_has_a_golden_file():
    assert {path.stem for path in GOLDEN.glob('*.npz')} >= set(CONFIGS)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 200_000


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_are_those_of_transformers_and_tensors_come_back_exactly(name):
    config, tensors, logits = golden(name)
    cfg, params = pretrained.build(config, tensors, name)
    own, _ = jax.jit(cfg.make().apply)({'params': params}, tokens(1))
    np.testing.assert_allclose(own, logits, atol=1e-5, rtol=1e-5)
    family = FAMILIES[config['model_type']]
    theirs, saved = Renamed(tensors, family.prefix), save(family.rules(cfg), params, cfg)
    assert set(saved) == set(theirs)
    for path, tensor in saved.items():
        np.testing.assert_array_equal(tensor, theirs[path], err_msg=path)
