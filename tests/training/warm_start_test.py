"""Runs that start from another one: what fits is taken, a vocabulary may grow, what contradicts writes nothing."""

import dataclasses
import io
import re

import jax
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import ICLLinear
from jattn.training import checkpoint
from jattn.training.experiment import Experiment, MeshConfig, TrainingConfig
from jattn.training.loop import train
from jattn.training.optimizer import AdamWConfig
from jattn.training.warm_start import adopt

TRAINING = TrainingConfig(steps=1, batch=4, eval_batches=1, optimizer=AdamWConfig(peak_lr=1e-9, warmup_steps=1))
PLAIN = Experiment(
    model=DecoderConfig(width=16, layers=2, mixer=(SoftmaxConfig(heads=2),), feed_forward=None),
    data=ICLLinear(dim=2, context=8),
    training=TRAINING,
)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('plain')
    train(PLAIN, workdir, stream=io.StringIO())
    return workdir


def warm(plain, workdir, mixer=SoftmaxConfig(heads=2, qk_norm=True), **training):
    model = dataclasses.replace(PLAIN.model, mixer=(mixer,))
    training = dataclasses.replace(TRAINING, seed=7, init_from=str(plain), **training)
    stream = io.StringIO()
    train(dataclasses.replace(PLAIN, model=model, training=training), workdir, stream=stream)
    return checkpoint.load(workdir)[1], stream.getvalue()


@pytest.mark.parametrize('layout', [dict(), dict(mesh=MeshConfig(fsdp=4, data=1)), dict(partition='pmap')])
def test_what_fits_is_taken_and_the_rest_is_named(plain, tmp_path, layout):
    _, old, _ = checkpoint.load(plain)
    params, said = warm(plain, tmp_path, **layout)
    new = params['body']['block_0']['mixer']
    np.testing.assert_allclose(new['q_proj']['kernel'], old['body']['block_0']['mixer']['q_proj']['kernel'], atol=1e-7)
    assert f'from {plain}: ' in said and 'new: body.block_0.mixer.k_norm.scale' in said and 'not used' not in said


def test_it_resumes_from_its_own_checkpoint(plain, tmp_path):
    warm(plain, tmp_path)
    _, said = warm(plain, tmp_path)
    assert 'finished already' in said and f'from {plain}' not in said


def test_what_contradicts_writes_nothing(plain, tmp_path):
    message = 'mixer.k_proj.kernel has shape (2, 16, 2, 8) there, but (2, 16, 4, 8) in this model'
    with pytest.raises(ConfigError, match=re.escape(message)):
        warm(plain, tmp_path / 'new', SoftmaxConfig(heads=4, head_dim=8))
    assert not (tmp_path / 'new').exists()


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no run here'):
        warm(tmp_path / 'nothing', tmp_path / 'new')


def test_a_vocabulary_may_grow_and_nothing_else():
    old = {'embedding': np.ones((3, 2), np.float32)}
    new = {'embedding': jax.numpy.zeros((5, 2))}
    params, lines = adopt(new, {'embedding': ('vocab', 'embed')}, old, 'there')
    np.testing.assert_array_equal(params['embedding'], [[1, 1]] * 3 + [[0, 0]] * 2)
    assert lines[1] == 'grown: embedding (3, 2) -> (5, 2)'
    for names, shape in ((('vocab', 'embed'), (2, 2)), (('mlp', 'embed'), (5, 2))):
        with pytest.raises(ConfigError, match='embedding has shape'):
            adopt({'embedding': jax.numpy.zeros(shape)}, {'embedding': names}, old, 'there')
    with pytest.raises(ConfigError, match='no parameter there'):
        adopt({'other': jax.numpy.zeros(2)}, {'other': (None,)}, old, 'there')
