"""Marks of parameters."""

from collections.abc import Callable, Iterable

import pytest


def slow_where(is_slow: Callable[[object], bool], names: Iterable[object]) -> list:
    """The names as parameters; those that are slow run in make test-all."""
    return [pytest.param(name, marks=[pytest.mark.slow] if is_slow(name) else []) for name in names]
