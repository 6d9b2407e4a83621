"""Imports go down the list of rooms, and only there (WORKSPACE.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'jattn'
# Each room may import those before it.
ROOMS = [
    'typing', 'taps', 'config', 'flops', 'ops', 'contract', 'nn', 'memories', 'mixers', 'poolers', 'models', 'interop',
    'testbeds', 'data', 'training', 'understanding',
]  # fmt: skip
FILES = sorted(ROOT.rglob('*.py'))


def room_of(path):
    return path.relative_to(ROOT).with_suffix('').parts[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split('.')
            if parts[0] in ('experiments', 'launch', 'tests'):
                yield parts[0]
            if parts[0] == 'jattn' and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    room = room_of(path)
    if room == '__init__':
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert set(imported_rooms(path)) <= set(allowed), f'{room} may import {allowed}'


def test_every_room_is_listed():
    assert {room_of(path) for path in FILES} - {'__init__'} == set(ROOMS)


def test_only_one_file_knows_orbax():
    users = [path.name for path in FILES if 'orbax' in path.read_text() and 'import orbax' in path.read_text()]
    assert users == ['checkpoint.py']
