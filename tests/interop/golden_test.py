"""Tiny models of every family give the outputs that transformers gave (`make_golden.py`), and are saved as they were.

Neither torch nor transformers is needed; `huggingface_test.py` compares with them anew.
"""

import jax
import numpy as np
import pytest

from jattn.interop import pretrained
from jattn.interop.families import FAMILIES
from jattn.interop.rules import Renamed, save
from tests.interop.tiny_models import ALL, GOLDEN, golden, reads

# A class token and its position are one parameter of ours.
FOLDED = {'embeddings.cls_token', 'embeddings.position_embeddings'}


def test_every_family_has_a_golden_file():
    assert {path.stem for path in GOLDEN.glob('*.npz')} >= set(ALL)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 200_000


@pytest.mark.parametrize('name', ALL)
def test_outputs_are_those_of_transformers_and_tensors_come_back_exactly(name):
    config, tensors, logits = golden(name)
    cfg, params = pretrained.build(config, tensors, name)
    own, _ = jax.jit(cfg.make().apply)({'params': params}, *reads(name, 1))
    np.testing.assert_allclose(own, logits, atol=1e-5, rtol=1e-5)
    family = FAMILIES[config['model_type']]
    theirs, saved = Renamed(tensors, family.prefix, family.ignored), save(family.rules(cfg), params, cfg)
    assert set(saved) == set(theirs)
    for path in set(saved) - FOLDED:
        np.testing.assert_array_equal(saved[path], theirs[path], err_msg=path)
    jax.tree.map(np.testing.assert_array_equal, pretrained.build(config, saved, name)[1], params)
