"""Checkpoints: what is saved comes back bit for bit, on any mesh; what is damaged is an error."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import configs
from jattn.models.decoder import DecoderConfig
from jattn.training import checkpoint
from jattn.training.checkpoint import Checkpointer, DamagedCheckpoint
from jattn.training.experiment import MeshConfig
from jattn.training.feed import make_feed
from jattn.training.loop import make_partition


def build(mesh=MeshConfig(data=1), partition='jit', width=32, layers=2):
    config = configs.load('icl_linear', 'tiny')
    training = dataclasses.replace(config.training, mesh=mesh, partition=partition)
    model = dataclasses.replace(config.model, width=width, layers=layers)
    config = dataclasses.replace(config, training=training, model=model)
    return config, make_partition(config, make_feed(config))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 1, 2, 3 with losses 1, 3, 2, and the state of step 3."""
    folder = tmp_path_factory.mktemp('run')
    config, partition = build()
    (folder / 'config.json').write_text(json.dumps(checkpoint.config_lib.to_json(config)))
    state = partition.init(jax.random.key(0))
    checkpoints = Checkpointer(folder, keep=1)
    for step, loss in ((1, 1.0), (2, 3.0), (3, 2.0)):
        state, _ = partition.train(state, None, 1)
        checkpoints.save(state, {'batches': step, 'fingerprint': 'x'}, config, loss)
    checkpoints.close()
    return folder, jax.device_get(state)


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / 'run')
    return tmp_path / 'run'


def step_folder(run):
    return run / 'checkpoints' / '3'


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_newest_and_best_are_kept(saved):
    assert sorted(path.name for path in (saved[0] / 'checkpoints').iterdir()) == ['1', '3']


@pytest.mark.parametrize(
    'mesh, partition',
    [(MeshConfig(data=1), 'jit'), (MeshConfig(data=1, fsdp=4), 'jit'), (MeshConfig(data=2, tensor=2), 'jit'),
     (MeshConfig(data=4), 'pmap')],
    ids=['same', 'fsdp4', 'data2_tensor2', 'pmap4'],
)  # fmt: skip
def test_a_state_comes_back_bit_for_bit_on_any_mesh(saved, mesh, partition):
    _, other = build(mesh, partition)
    state, position = Checkpointer(saved[0]).restore(3, other.abstract)
    assert position == {'batches': 3, 'fingerprint': 'x'}
    assert_same(jax.device_get(state), saved[1])
    assert_same(jax.device_get(other.unreplicated(other.replicated(state))), saved[1])


def test_load_opens_a_run(saved):
    model, params, config = checkpoint.load(saved[0])
    assert_same(jax.device_get(params), saved[1].params)
    outputs, _ = model.apply({'params': params}, config.data.sample(jax.random.key(0), 2).inputs)
    assert outputs.shape == (2, 9, 1)


def test_load_names_what_is_missing(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match='no run here'):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 7'):
        checkpoint.load(saved[0], step=7)


def largest_file(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('where', [0.2, 0.5, 0.9])
def test_a_flipped_bit_is_an_error(copy, where):
    path = largest_file(step_folder(copy) / 'state')
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match='damaged'):
        Checkpointer(copy).restore(3, build()[1].abstract)
    with pytest.raises(DamagedCheckpoint, match='damaged'):
        checkpoint.load(copy)


@pytest.mark.parametrize('harm', ['truncate', 'delete', 'facts'])
def test_a_broken_file_is_an_error(copy, harm):
    path = largest_file(step_folder(copy) / 'state')
    if harm == 'truncate':
        path.write_bytes(path.read_bytes()[:100])
    elif harm == 'delete':
        path.unlink()
    else:
        (step_folder(copy) / 'facts' / 'metadata').write_text('{')
    with pytest.raises(DamagedCheckpoint, match=r'3: .*damaged'):
        Checkpointer(copy).restore(3, build()[1].abstract)


def test_an_uncommitted_checkpoint_is_ignored(copy):
    (copy / 'checkpoints' / '9').mkdir()
    (copy / 'checkpoints' / '10.orbax-checkpoint-tmp').mkdir()
    assert Checkpointer(copy).latest() == 3
    assert checkpoint.latest_step(pathlib.Path(copy) / 'nothing') is None


@pytest.mark.parametrize(
    'changes, message', [(dict(width=64), r'params/.* is float32 \('), (dict(layers=3), 'but the')]
)
def test_another_model_is_an_error(saved, changes, message):
    with pytest.raises(DamagedCheckpoint, match=message):
        Checkpointer(saved[0]).restore(3, build(**changes)[1].abstract)


def test_another_dtype_is_an_error(saved):
    abstract = build()[1].abstract
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float16, sharding=x.sharding), abstract.params)
    with pytest.raises(DamagedCheckpoint, match='is float32'):
        Checkpointer(saved[0]).restore(3, dataclasses.replace(abstract, params=params))


def test_the_checksum_sees_every_bit_and_every_swap():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    base = checkpoint.describe({'x': jax.numpy.asarray(x)})
    for place in range(0, 64, 7):
        words = x.copy().view(np.uint32)
        words.flat[place] ^= 1 << (place % 32)
        assert checkpoint.describe({'x': jax.numpy.asarray(words.view(np.float32))}) != base
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert checkpoint.describe({'x': jax.numpy.asarray(swapped)}) != base


def test_decoder_config_survives_json():
    config = configs.load('lm_bytes', 'tiny', ['model.mixer=rg_lru,rg_lru,softmax', 'model.mixer.2.window=64'])
    assert checkpoint.config_lib.from_json(json.loads(json.dumps(checkpoint.config_lib.to_json(config)))) == config
    assert isinstance(config.model, DecoderConfig)
