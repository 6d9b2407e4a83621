"""One config gives the same losses however its rows and arrays are laid out; arrays are really sharded."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.data.text import TextConfig
from jattn.mixers import MIXERS
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import ICLLinear
from jattn.training.evaluate import evaluate
from jattn.training.experiment import Experiment, MeshConfig, TrainingConfig
from jattn.training.feed import make_feed
from jattn.training.loop import make_partition
from jattn.training.optimizer import AdamWConfig, MuonConfig

LAYOUTS = {
    'one': dict(mesh=MeshConfig(data=1)),
    'data4': dict(mesh=MeshConfig(data=4)),
    'fsdp4': dict(mesh=MeshConfig(data=1, fsdp=4)),
    'data2_tensor2': dict(mesh=MeshConfig(data=2, tensor=2)),
    'pmap4': dict(mesh=MeshConfig(data=4), partition='pmap'),
}


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    for i in range(40):
        (folder / f'{i}.txt').write_text(f'line {i} of a text\n' * (10 + i))
    return TextConfig(path=str(folder), tokens=32)


def experiment(data, layout, optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=2), **training):
    model = DecoderConfig(width=32, layers=3, mixer=tuple(mixer.tiny() for mixer in MIXERS.values()))
    settings = TrainingConfig(steps=10, batch=8, optimizer=optimizer, eval_batches=2, **LAYOUTS[layout], **training)
    return Experiment(model=model, data=data, training=settings)


@functools.cache
def losses(data, layout, optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=2), **training):
    config = experiment(data, layout, optimizer, **training)
    feed = make_feed(config)
    partition = make_partition(config, feed)
    state = partition.init(jax.random.key(0))
    found = []
    for _ in range(config.training.steps):
        state, metrics = partition.train(state, feed.take(1), 1)
        found.append(float(metrics['train/loss']))
    found.append(evaluate(partition, state, feed.eval_batches())['eval/loss'])
    return found, state, partition


@pytest.mark.parametrize('layout', [name for name in LAYOUTS if name != 'one'])
@pytest.mark.parametrize('source', ['text', pytest.param('testbed', marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_layout(text, source, layout):
    data = text if source == 'text' else ICLLinear(dim=2, context=8)
    expected, _, _ = losses(data, 'one')
    found, _, _ = losses(data, layout)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_accumulation_does_not_change_the_losses(text):
    expected, _, _ = losses(text, 'one')
    found, _, _ = losses(text, 'one', accumulate=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_muon_does_not_depend_on_the_layout(text):
    optimizer = MuonConfig(warmup_steps=2)
    expected, _, _ = losses(text, 'one', optimizer)
    found, _, _ = losses(text, 'data2_tensor2', optimizer)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # Newton-Schulz amplifies rounding


def bytes_by_device(state):
    held, whole = {}, 0
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        whole += leaf.nbytes
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values()) / whole


@pytest.mark.parametrize(
    'layout, low, high', [('data4', 1.0, 1.0), ('fsdp4', 0.25, 0.31), ('data2_tensor2', 0.5, 0.56)]
)
def test_parameters_and_optimizer_state_are_sharded(text, layout, low, high):
    _, state, _ = losses(text, layout)
    assert low <= bytes_by_device(state) <= high


def test_steps_of_one_call_equal_steps_of_many(text):
    config = experiment(text, 'one')
    feed = make_feed(config)
    expected, one_by_one, partition = losses(text, 'one')
    state, metrics = partition.train(partition.init(jax.random.key(0)), feed.take(10), 10)
    assert float(metrics['train/loss']) == expected[9]
    jax.tree.map(np.testing.assert_array_equal, state.params, one_by_one.params)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(mesh=MeshConfig(data=8)), r'needs 8 devices, but there are 4'),
        (dict(mesh=MeshConfig(data=3)), r'training.batch=8 must be a multiple of training.mesh.data x fsdp=3'),
        (dict(mesh=MeshConfig(data=3), partition='pmap'), r'training.batch=8 must be a multiple of the number of'),
    ],
    ids=['too_few_devices', 'batch_jit', 'batch_pmap'],
)
def test_what_does_not_fit_is_named(text, changes, message):
    config = experiment(text, 'one')
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))
    with pytest.raises(ConfigError, match=message):
        make_partition(config, make_feed(config))


def test_heads_that_do_not_divide_over_the_tensor_axis_are_named(text):
    config = experiment(text, 'one')
    model = dataclasses.replace(config.model, mixer=(dataclasses.replace(MIXERS['softmax'], key_heads=1),))
    training = dataclasses.replace(config.training, mesh=MeshConfig(data=1, tensor=2))
    config = dataclasses.replace(config, model=model, training=training)
    with pytest.raises(ConfigError, match=r'k_proj.kernel: axis 2 .* must be a multiple of training.mesh.tensor=2'):
        make_partition(config, make_feed(config))
