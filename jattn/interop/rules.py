"""A family's table of tensors, applied both ways: their names and shapes -> our parameters, and back.

    Rule('model.layers.{i}.self_attn.q_proj.weight', 'mixer.q_proj.kernel', split_heads(9), layers=range(30))

A rule ties one or more of their tensors to one or more of our parameters by an operation that can be undone. A rule of
layers is read once for every layer; ours are stacked as the trunk stacks them (`TrunkConfig.layer_sites`). Every tensor
of a file must be used and every parameter filled: what is left over on either side is an error that lists it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.config import ConfigError
from jattn.contract import Context
from jattn.models.trunk import TrunkConfig
from jattn.typing import Array, PyTree

Tensors = Mapping[str, np.ndarray]
MANY = 8  # names that an error lists


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is done to arrays: `load(*theirs) -> ours`, `save(*ours) -> theirs`, both tuples."""

    load: Callable[..., tuple]
    save: Callable[..., tuple]


def one(load: Callable[[np.ndarray], Any], save: Callable[[np.ndarray], Any]) -> Operation:
    """An operation on one array."""
    return Operation(lambda x: (load(x),), lambda x: (save(x),))


AS_IS = one(lambda x: x, lambda x: x)
TRANSPOSED = one(np.transpose, np.transpose)
PLUS_ONE = one(lambda x: x + 1, lambda x: x - 1)  # a gain that is stored as its difference to 1
UNUSED = Operation(lambda *xs: (), lambda: ())  # theirs alone: nothing of ours depends on it


def split_heads(heads: int) -> Operation:
    """A projection to heads: (H K, D) <-> [D, H, K].

    >>> split_heads(2).load(np.zeros((8, 6)))[0].shape
    (6, 2, 4)
    """
    return one(
        lambda w: w.reshape(heads, -1, w.shape[1]).transpose(2, 0, 1),
        lambda w: w.transpose(1, 2, 0).reshape(-1, w.shape[0]),
    )


def split_bias(heads: int) -> Operation:
    """Its bias: (H K) <-> [H, K]."""
    return one(lambda b: b.reshape(heads, -1), lambda b: b.reshape(-1))


def join_heads(heads: int) -> Operation:
    """A projection from heads: (D, H K) <-> [H, K, D].

    >>> join_heads(2).load(np.zeros((6, 8)))[0].shape
    (2, 4, 6)
    """
    return one(
        lambda w: w.reshape(w.shape[0], heads, -1).transpose(1, 2, 0),
        lambda w: w.transpose(2, 0, 1).reshape(w.shape[2], -1),
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """Their tensors and our parameters, tied by an operation.

    Attributes:
        theirs: names; `{i}` is the number of the layer on their side, from 0.
        ours: dotted paths, of a layer's block or (without layers) of the whole model.
        operation: between them.
        layers: numbers of our layers; None: the rule is of the whole model.
        optional: whether a file may lack the tensors: copies of others.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    operation: Operation = AS_IS
    layers: range | None = None
    optional: bool = False

    def each(self, sites: Sequence[tuple[tuple[str, ...], int]]) -> Iterator[tuple[list[str], list[tuple]]]:
        """(their names, our places) of every layer; a place is (dotted path, repeat or None)."""
        theirs, ours = _tuple(self.theirs), _tuple(self.ours)
        for number, layer in enumerate(self.layers if self.layers is not None else [None]):
            path, repeat = ((), None) if layer is None else sites[layer]
            names = [name if layer is None else name.replace('{i}', str(number)) for name in theirs]
            yield names, [('.'.join((*path, name)), repeat) for name in ours]


def of_layers(prefix: str, layers: int | range) -> Callable[..., Rule]:
    """What makes the rules of every layer: `each(theirs, ours, operation)`; `{i}` in the prefix is the layer's number.

    A range has the numbers of our layers, for models of two sides.

    >>> each = of_layers('h.{i}.', 2)
    >>> each('ln_1.weight', 'mixer_norm.scale').theirs
    'h.{i}.ln_1.weight'
    """
    layers = layers if isinstance(layers, range) else range(layers)
    return lambda theirs, ours, operation=AS_IS: Rule(prefix + theirs, ours, operation, layers)


def load(rules: Sequence[Rule], tensors: Tensors, abstract: PyTree, cfg: TrunkConfig, where: str) -> PyTree:
    """Our parameters, float32, from their tensors.

    Args:
        rules: the family's table for this model.
        tensors: by their names.
        abstract: shapes of our parameters (`abstract_params`).
        cfg: the trunk.
        where: the file, for errors.

    Raises:
        ConfigError: a tensor is missing or has another shape; tensors are not used, or parameters not filled.
    """
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    missing, used = [], set()
    values: dict[str, np.ndarray] = {}
    filled: dict[str, set] = {}
    for rule in rules:
        for names, places in rule.each(cfg.layer_sites()):
            if absent := [name for name in names if name not in tensors]:
                missing += [] if rule.optional else absent
                continue
            used.update(names)
            for (path, repeat), value in zip(places, _loaded(rule, names, tensors, where), strict=True):
                if path not in shapes:
                    raise ConfigError(f'{where}: {", ".join(names)} would fill {path}, which this model does not have')
                leaf = values.setdefault(path, np.empty(shapes[path], np.float32))
                room = leaf if repeat is None else leaf[repeat]
                if value.shape not in ((), room.shape):
                    raise ConfigError(f'{where}: {", ".join(names)} has shape {value.shape} for {path} {room.shape}')
                room[...] = value
                filled.setdefault(path, set()).add(repeat)
    unfilled = [path for path, shape in shapes.items() if not _is_full(filled.get(path, set()), shape)]
    unused = [name for name in tensors if name not in used]
    lists = (('missing there', missing), ('not used', unused), ('not filled here', unfilled))
    if wrong := [f'{title}: {_few(names)}' for title, names in lists if names]:
        raise ConfigError(f'{where} does not fit its table: {"; ".join(wrong)}')
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values.pop(_name(path))), abstract)


def _loaded(rule: Rule, names: Sequence[str], tensors: Tensors, where: str) -> tuple:
    """What a rule makes of their tensors."""
    if not rule.ours:
        return ()
    arrays = [np.asarray(tensors[name], np.float32) for name in names]
    try:
        return rule.operation.load(*arrays)
    except (ValueError, IndexError) as error:
        shapes = ', '.join(str(array.shape) for array in arrays)
        raise ConfigError(f'{where}: {", ".join(names)} has shape {shapes}, not one for {rule.ours}') from error


def save(rules: Sequence[Rule], params: PyTree, cfg: TrunkConfig) -> dict[str, np.ndarray]:
    """Their tensors from our parameters, the inverse of `load`; those that are theirs alone are not made."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tensors = {}
    for rule in rules:
        if not rule.ours:  # nothing of ours makes it
            continue
        for names, places in rule.each(cfg.layer_sites()):
            own = [np.asarray(leaves[path] if n is None else leaves[path][n]) for path, n in places]
            tensors |= dict(zip(names, map(np.ascontiguousarray, rule.operation.save(*own)), strict=True))
    return tensors


def abstract_params(cfg: TrunkConfig, inputs: Array, context: Context) -> PyTree:
    """Shapes of a trunk's parameters.

    Args:
        cfg: the trunk.
        inputs: an example, or its shape.
        context: what it is read with.
    """
    init = lambda key, inputs, context: cfg.make().init(key, inputs, context)
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), inputs, context))['params']


class Renamed(Mapping[str, np.ndarray]):
    """Tensors without a prefix that some files have, and without those whose names match `ignored` in full.

    >>> list(Renamed({'bert.a': 0, 'bert.b.position_ids': 0}, 'bert.', [r'.*position_ids']))
    ['a']
    """

    def __init__(self, tensors: Tensors, prefix: str = '', ignored: Sequence[str] = ()) -> None:
        short = {name.removeprefix(prefix): name for name in tensors}
        self._tensors = tensors
        self._names = {
            name: long for name, long in short.items() if not any(re.fullmatch(rule, name) for rule in ignored)
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')


def _is_full(repeats: set, shape: tuple[int, ...]) -> bool:
    """Whether a parameter was filled, whole or at every repeat of its slot."""
    return repeats == {None} or (None not in repeats and bool(repeats) and repeats == set(range(shape[0])))


def _few(names: Sequence[str]) -> str:
    more = f' and {len(names) - MANY} more' if len(names) > MANY else ''
    return ', '.join(names[:MANY]) + more
