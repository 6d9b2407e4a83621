"""Config trees: assignments are typed and checked at the end; JSON keeps them whole; differences name leaves."""

import json

import pytest

from experiments import configs
from jattn import config as config_lib
from jattn.config import ConfigError
from jattn.data import DnaConfig, TextConfig
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.testbeds import ICLLinear
from jattn.training.experiment import Experiment
from jattn.training.optimizer import AdamWConfig


def change(*assignments):
    return config_lib.override(Experiment(), assignments, configs.TABLES)


def test_a_part_is_swapped_by_name_and_then_changed():
    config = change('model.mixer=rg_lru,softmax', 'model.mixer.1.window=64', 'training.optimizer=adamw')
    assert config.model.mixer == (MIXERS['rg_lru'], SoftmaxConfig(window=64))
    assert config.training.optimizer == AdamWConfig()


def test_one_slot_is_swapped():
    assert change('model.mixer=rg_lru,softmax', 'model.mixer.0=softmax').model.mixer == (SoftmaxConfig(),) * 2


def test_fields_that_must_agree_may_come_in_either_order():
    for order in (('model.width=90', 'model.mixer.heads=5'), ('model.mixer.heads=5', 'model.width=90')):
        config = change(*order)
        assert (config.model.width, config.model.mixer[0].heads) == (90, 5)


def test_a_testbed_may_replace_a_corpus():
    assert change('data=icl_linear', 'data.dim=3').data == ICLLinear(dim=3)


def test_a_corpus_may_replace_another_and_names_of_files_are_tuples():
    assert change('data=dna', 'data.task=classify').data == DnaConfig(task='classify')
    assert change('data.validation=emma,drac*').data == TextConfig(validation=('emma', 'drac*'))
    assert change('data.validation=none').data == TextConfig()


@pytest.mark.parametrize(
    'assignment, path, value',
    [
        ('model.mixer.window=none', ('model', 'mixer', 0, 'window'), None),
        ('model.mixer.window=7', ('model', 'mixer', 0, 'window'), 7),
        ('model.scan=false', ('model', 'scan'), False),
        ('training.optimizer.peak_lr=1e-4', ('training', 'optimizer', 'peak_lr'), 1e-4),
        ('model.feed_forward=none', ('model', 'feed_forward'), None),
        ('data.path=a=b', ('data', 'path'), 'a=b'),
    ],
)
def test_values_are_typed_by_the_annotation(assignment, path, value):
    node = change(assignment)
    for name in path:
        node = node[name] if isinstance(name, int) else getattr(node, name)
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    'assignment, message',
    [
        ('model.scan=maybe', 'model.scan=maybe: must be bool'),
        ('model.width=1.5', 'model.width=1.5: must be int'),
        ('model.width.x=1', "width is 128 and has no field 'x'"),
        ('model.feed_forward=wide', 'set one of its fields instead'),
        ('training.mesh.tensor=0', 'training.mesh: tensor=0 must be at least 1'),
        ('model.mixer=softmax,', 'no such name'),
        ('data=serie', "no such name; did you mean 'series'.* passkey"),
        ('data=passky', "no such name; did you mean 'passkey'.* series"),
    ],
)
def test_what_does_not_fit_is_named(assignment, message):
    with pytest.raises(ConfigError, match=message):
        change(assignment)


@pytest.mark.parametrize('name', configs.names())
def test_json_gives_the_config_back(name):
    config = configs.load(name, 'small')
    assert config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config)))) == config


def test_json_of_another_library_or_version_is_refused():
    with pytest.raises(ConfigError, match='is not of this library'):
        config_lib.from_json({'type': 'os:system'})
    with pytest.raises(ConfigError, match='does not fit this version'):
        config_lib.from_json({'type': 'jattn.mixers.softmax:SoftmaxConfig', 'head': 3})


def test_difference_names_leaves_and_swapped_parts():
    found = config_lib.difference(Experiment(), change('model.mixer=rg_lru', 'training.seed=3'))
    assert found['training.seed'] == (0, 3)
    assert found['model.mixer.0.type'][1].endswith('RGLRUConfig')
    assert found['model.mixer.0.window'] == (None, '(absent)')
