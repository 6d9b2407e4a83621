"""Trees of frozen dataclasses: to JSON and back, changed by dotted path, compared field by field.

An experiment is one such tree. A command line changes it with `path=value` in order, typed by the fields' annotations;
whole parts are swapped by name from the visible tables (`model.mixer=rg_lru,softmax`), then changed further
(`model.mixer.1.window=64`). The tree is built once, after the last assignment, so that two fields that must agree may
be set in either order.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

Tables = Mapping[type, Mapping[str, Any]]  # a part's base class -> its table of named instances


class ConfigError(ValueError):
    """A config that cannot be: the message names the field, the value and the rule, in one line."""


@dataclasses.dataclass
class _Draft:
    """A config that is not built yet: its class and its fields, which may be drafts or tuples of them."""

    cls: type
    fields: dict[str, Any]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the near one, and all there are.

    >>> nearest('sofmax', ['softmax', 'rg_lru'])
    "did you mean 'softmax'? there are: softmax, rg_lru"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f'did you mean {close[0]!r}? ' if close else '') + f'there are: {", ".join(known)}'


def override(config: Any, assignments: Iterable[str], tables: Tables) -> Any:
    """A copy of the tree with `path=value` assignments applied in order.

    Raises:
        ConfigError: an unknown field or name (with the near one), a value of the wrong type, a rule of a config.

    >>> from jattn.contract import MixerConfig
    >>> from jattn.mixers import MIXERS
    >>> from jattn.models import DecoderConfig
    >>> changes = ['mixer=rg_lru,rg_lru,softmax', 'mixer.2.window=64', 'width=64']
    >>> config = override(DecoderConfig(), changes, {MixerConfig: MIXERS})
    >>> len(config.mixer), config.mixer[2].window, config.width
    (3, 64, 64)
    """
    draft = _draft(config)
    for assignment in assignments:
        path, equals, value = assignment.partition('=')
        if not equals:
            raise ConfigError(f'{assignment!r} must read path=value, as in training.steps=100')
        _assign(draft, path.strip().split('.'), value.strip(), path.strip(), tables)
    return _build(draft, '')


def to_json(config: Any) -> Any:
    """The tree as JSON values; each part carries its class, so that `from_json` needs nothing else."""
    if dataclasses.is_dataclass(config):
        cls = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {'type': f'{cls.__module__}:{cls.__qualname__}', **fields}
    return [to_json(item) for item in config] if isinstance(config, tuple) else config


def from_json(value: Any) -> Any:
    """The tree that `to_json` wrote.

    Raises:
        ConfigError: a class or a field that this version does not have.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    module, _, name = value['type'].partition(':')
    if module.partition('.')[0] not in ('jattn', 'experiments'):
        raise ConfigError(f'config type {value["type"]!r} is not of this library')
    try:
        cls = getattr(importlib.import_module(module), name)
        return cls(**{key: from_json(item) for key, item in value.items() if key != 'type'})
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f'config type {value["type"]!r} does not fit this version: {error}') from error


def flatten(config: Any, path: str = '') -> dict[str, Any]:
    """Every leaf by its dotted path; a part's class is the leaf `path.type`."""
    value = to_json(config) if dataclasses.is_dataclass(config) else config
    if isinstance(value, list):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        return {path: value}
    leaves = {}
    for name, item in value.items():
        leaves |= flatten(item, f'{path}.{name}' if path else name)
    return leaves


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """path -> (old, new) for every leaf that differs; a missing leaf is '(absent)'.

    >>> from jattn.models import DecoderConfig
    >>> difference(DecoderConfig(), DecoderConfig(layers=2))
    {'layers': (4, 2)}
    """
    before, after = flatten(old), flatten(new)
    paths = list(before) + [path for path in after if path not in before]
    pairs = {path: (before.get(path, '(absent)'), after.get(path, '(absent)')) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _draft(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_draft(item) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    return _Draft(type(value), {f.name: _draft(getattr(value, f.name)) for f in dataclasses.fields(value)})


def _build(draft: Any, path: str) -> Any:
    if isinstance(draft, tuple):
        return tuple(_build(item, f'{path}.{i}') for i, item in enumerate(draft))
    if not isinstance(draft, _Draft):
        return draft
    fields = {name: _build(item, f'{path}.{name}' if path else name) for name, item in draft.fields.items()}
    try:
        return draft.cls(**fields)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f'{path}: {error}' if path else str(error)) from error


def _assign(draft: _Draft, parts: list[str], value: str, path: str, tables: Tables) -> None:
    name, rest = parts[0], parts[1:]
    if name not in draft.fields:
        raise ConfigError(f'{path}: {draft.cls.__name__} has no field {name!r}; {nearest(name, draft.fields)}')
    hint = typing.get_type_hints(draft.cls)[name]
    if not rest:
        draft.fields[name] = _parse(value, hint, path, tables)
        return
    child = draft.fields[name]
    if isinstance(child, tuple):
        child, rest = _slot(child, rest, path)
    if not isinstance(child, _Draft):
        raise ConfigError(f'{path}: {name} is {child!r} and has no field {rest[0]!r}')
    if rest:
        _assign(child, rest, value, path, tables)
        return
    # model.mixer.2=softmax: one slot of a tuple is swapped.
    new = _parse(value, typing.get_args(hint)[0], path, tables)
    draft.fields[name] = tuple(new if i == int(parts[1]) else item for i, item in enumerate(draft.fields[name]))


def _slot(slots: tuple, rest: list[str], path: str) -> tuple[Any, list[str]]:
    """The slot that a path means: by number, or the only one."""
    if rest[0].isdigit():
        if int(rest[0]) >= len(slots):
            raise ConfigError(f'{path}: slot {rest[0]} does not exist, there are {len(slots)} (0 to {len(slots) - 1})')
        return slots[int(rest[0])], rest[1:]
    if len(slots) != 1:
        numbers = ', '.join(str(i) for i in range(len(slots)))
        raise ConfigError(f'{path}: there are {len(slots)} slots, say which one ({numbers}) before {rest[0]!r}')
    return slots[0], rest


def _parse(text: str, hint: Any, path: str, tables: Tables) -> Any:
    """The value of a field from its text, by the field's annotation."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if text.lower() == 'none' and len(options) < len(typing.get_args(hint)):
            return None
        return _parse_any(text, options, path, tables)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_parse(part.strip(), item, path, tables) for part in text.split(','))
    if hint is bool:
        words = {'true': True, '1': True, 'false': False, '0': False}
        if text.lower() in words:
            return words[text.lower()]
    elif hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            pass
    elif hint is str:
        return text
    else:
        return _parse_part(text, hint, path, tables)
    raise ConfigError(f'{path}={text}: must be {hint.__name__}')


def _parse_any(text: str, options: list[Any], path: str, tables: Tables) -> Any:
    errors = []
    for option in options:
        try:
            return _parse(text, option, path, tables)
        except ConfigError as error:
            errors.append(error)
    known = [name for option in options for name in _table(option, tables) or ()]
    if known:
        raise ConfigError(f'{path}={text}: no such name; {nearest(text, known)}')
    raise errors[-1]


def _parse_part(text: str, hint: type, path: str, tables: Tables) -> Any:
    table = _table(hint, tables)
    if table is not None:
        if text not in table:
            raise ConfigError(f'{path}={text}: no such name; {nearest(text, table)}')
        return _draft(table[text])
    names = ', '.join(f.name for f in dataclasses.fields(hint))
    raise ConfigError(f'{path}={text}: set one of its fields instead: {names}')


def _table(hint: Any, tables: Tables) -> Mapping[str, Any] | None:
    """The table of a part's base class; None where it has none."""
    bases = [base for base in tables if isinstance(hint, type) and issubclass(hint, base)]
    return tables[bases[0]] if bases else None
