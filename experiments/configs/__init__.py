"""The shipped experiments, one question a file; each exposes `config(size) -> Experiment`."""

import importlib
import pkgutil

from jattn.config import ConfigError, nearest
from jattn.training.experiment import Experiment

SIZES = ('tiny', 'small', 'paper')


def names() -> list[str]:
    """The names for --config."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def summary(name: str) -> str:
    """The first line of a config's file: its question."""
    return (importlib.import_module(f'{__name__}.{name}').__doc__ or '').splitlines()[0]


def load(name: str, size: str = 'small') -> Experiment:
    """The experiment of a name and a size.

    Raises:
        ConfigError: an unknown name or size.
    """
    if name not in names():
        raise ConfigError(f'--config={name}: no such config; {nearest(name, names())}')
    if size not in SIZES:
        raise ConfigError(f'--size={size}: must be one of {", ".join(SIZES)}')
    return importlib.import_module(f'{__name__}.{name}').config(size)
