"""Starting from another run or a published model: its parameters where they fit, new ones where it has none.

    python -m experiments.run --config=lm_bytes --set model.mixer=mixture_of_heads --init_from=runs/a --workdir=runs/b
    python -m experiments.run --config=lm_bytes --init_from=smollm2 --set data.path=DIR --workdir=runs/c

What contradicts is refused. A run that starts from a published model has its trunk and its tokens (`published`), before
anything is --set. A parameter fits one of the same path and shape. An axis named 'vocab' may grow: new entries keep
their initial values (landmark tokens). A run that has saved a checkpoint resumes from that; the optimizer starts anew.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.config import ConfigError
from jattn.data import TextConfig
from jattn.interop import pretrained
from jattn.models.decoder import DecoderConfig
from jattn.testbeds.task import Batch
from jattn.training import checkpoint
from jattn.training.experiment import Experiment
from jattn.training.step import TrainState, abstract_params
from jattn.typing import Array, PyTree


def warm_start(state: TrainState, config: Experiment, example: Batch) -> tuple[TrainState, list[str]]:
    """The state with the parameters of `config.training.init_from`, and lines that say what was done.

    Args:
        state: a fresh one, every array once.
        config: of the new run.
        example: a batch of its model, for shapes.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint; the published model is not installed.
        ConfigError: rows are longer than a published model has positions for; a parameter of both has two shapes, or
            the two share none.
    """
    start = config.training.init_from
    if pretrained.exists(start):
        found = pretrained.load(start)
        found.check_length(example.inputs.shape[1])
        old = found.params
    else:
        _, old, _ = checkpoint.load(start)
    names = nn.get_partition_spec(abstract_params(config.make_model(), example))
    params, lines = adopt(state.params, names, old, start)
    return state.replace(params=params), lines


def published(config: Experiment, name: str) -> Experiment:
    """The experiment with the trunk and the tokens of a published decoder.

    Raises:
        ConfigError: the model is no decoder of text, or the data is no text.
    """
    model = pretrained.load_trunk(name)
    if type(model) is not DecoderConfig:
        raise ConfigError(f'{name}: not a decoder of text')
    if not isinstance(config.data, TextConfig):
        raise ConfigError(f'{name} reads text, but data is {type(config.data).__name__}: take a config of text')
    pretrained.load_tokenizer(name)  # an error where there is none
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, tokenizer=name))


def adopt(params: PyTree, names: PyTree, old: PyTree, where: str) -> tuple[PyTree, list[str]]:
    """`params` with the values of `old` at the same paths, and what became of both.

    >>> new, old = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}, {'a': jnp.ones(2), 'c': jnp.ones(1)}
    >>> params, lines = adopt(new, {'a': (None,), 'b': (None,)}, old, 'runs/a')
    >>> params['a'].tolist(), lines
    ([1.0, 1.0], ['from runs/a: 1 parameter', 'new: b', 'not used: c'])
    """
    given = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    axes = {_name(path): tuple(leaf) for path, leaf in _leaves_of_names(names)}
    new, grown, taken = [], [], 0

    def choose(path: tuple, leaf: Array) -> Array:
        nonlocal taken
        name = _name(path)
        if name not in given:
            new.append(name)
            return leaf
        taken += 1
        value = given.pop(name)
        if value.shape == leaf.shape:
            return _place(value.astype(leaf.dtype), leaf)
        if not _may_grow(value.shape, leaf.shape, axes[name]):
            raise ConfigError(
                f'training.init_from={where}: {name} has shape {value.shape} there, but {leaf.shape} in this model'
            )
        grown.append(f'{name} {value.shape} -> {leaf.shape}')
        corner = tuple(slice(0, size) for size in value.shape)
        return _place(jnp.asarray(jax.device_get(leaf)).at[corner].set(value.astype(leaf.dtype)), leaf)

    params = jax.tree_util.tree_map_with_path(choose, params)
    if not taken:
        raise ConfigError(f'training.init_from={where}: no parameter there has the name of one in this model')
    lines = [f'from {where}: {taken} parameter{"s" if taken > 1 else ""}']
    for title, found in (('grown', grown), ('new', new), ('not used', list(given))):
        lines += [f'{title}: {", ".join(found)}'] if found else []
    return params, lines


def _may_grow(old: tuple[int, ...], new: tuple[int, ...], names: tuple[str | None, ...]) -> bool:
    """Whether the shapes differ only in axes of a vocabulary that has more entries now."""
    if len(old) != len(new):
        return False
    return all(a == b or (name == 'vocab' and a < b) for a, b, name in zip(old, new, names, strict=True))


def _place(value: Array, like: Array) -> Array:
    """The value where `like` lives, on one device or in shards."""
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def _leaves_of_names(names: PyTree) -> list:
    is_names = lambda node: isinstance(node, tuple | jax.sharding.PartitionSpec)
    return jax.tree_util.tree_leaves_with_path(names, is_leaf=is_names)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')
