"""A stream on a disk: one .npz file with the arrays of a `Stream` by their paths, and what model they belong to.

A state means something to one model alone. The file therefore holds the model's config and a fingerprint of its
parameters, and goes back into no other.
"""

import hashlib
import json
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn import config as config_lib
from jattn.config import ConfigError
from jattn.models.stream import Stream
from jattn.typing import PyTree

MODEL = 'model'  # the entry beside the arrays
WORDS = 'bits of '  # before the path of an array of a dtype that .npz does not know (bfloat16)


def fingerprint(params: PyTree) -> str:
    """Of the parameters: paths, shapes, dtypes and bits.

    >>> fingerprint({'w': jnp.zeros(2)}) == fingerprint({'w': jnp.zeros(2)}) != fingerprint({'w': jnp.ones(2)})
    True
    """
    digest = hashlib.sha256()
    for path, leaf in _named(nn.unbox(params)).items():
        array = np.asarray(leaf)
        digest.update(f'{path} {array.shape} {array.dtype}'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def save(path: str | pathlib.Path, stream: Stream, model: nn.Module, params: PyTree) -> None:
    """Writes the stream; the file appears whole or not at all.

    Args:
        path: of the file, as it is: no ending is added.
        stream: where the rows stand.
        model: the decoder that read it.
        params: its parameters.
    """
    path = pathlib.Path(path)
    arrays = {}
    for name, leaf in _named(stream).items():
        array = np.asarray(leaf)
        if array.dtype.kind == 'V':
            name, array = WORDS + name, array.view(f'uint{8 * array.dtype.itemsize}')
        arrays[name] = array
    described = json.dumps({'config': config_lib.to_json(model.cfg), 'parameters': fingerprint(params)})
    draft = path.with_name(path.name + '.tmp')
    with draft.open('wb') as file:
        np.savez(file, **{MODEL: np.array(described)}, **arrays)
    os.replace(draft, path)


def load(path: str | pathlib.Path, template: Stream, model: nn.Module, params: PyTree) -> Stream:
    """The stream of a file.

    Args:
        path: of the file.
        template: a stream of the same rows and capacity, for structure, shapes and dtypes (`open_stream`).
        model: the decoder that goes on.
        params: its parameters.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no stream's file, or of another config, other parameters, rows or capacity; names both.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        saved = json.loads(str(arrays.pop(MODEL)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f'{path}: not the file of a stream ({type(error).__name__}: {error})') from error
    _check(path, saved, model, params)
    expected = _named(template)
    if missing := [name for name in expected if name not in arrays and WORDS + name not in arrays]:
        raise ConfigError(f'{path}: {missing[0]} is missing')
    leaves = []
    for name, leaf in expected.items():
        array = arrays[name] if name in arrays else arrays[WORDS + name].view(leaf.dtype)
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ConfigError(
                f'{path}: {name} is {array.dtype} {array.shape}, but this stream needs {leaf.dtype} {leaf.shape}: '
                'rows and capacity must be those of the stream that was saved'
            )
        leaves.append(jnp.asarray(array))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _check(path: str | pathlib.Path, saved: dict, model: nn.Module, params: PyTree) -> None:
    """An error for another model, which names both."""
    changes = config_lib.difference(config_lib.from_json(saved['config']), model.cfg)
    if changes:
        rows = '; '.join(f'{field}: {old!r} there, {new!r} here' for field, (old, new) in changes.items())
        raise ConfigError(f'{path} holds the state of another model: {rows}')
    own = fingerprint(params)
    if own != saved['parameters']:
        raise ConfigError(
            f'{path} holds the state of a model of this config with other parameters: '
            f'fingerprint {saved["parameters"]} there, {own} here'
        )


def _named(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}
