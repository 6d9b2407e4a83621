"""The folder of a run: one process group at a time, one config for ever.

config.json   metrics.jsonl   loss.png   log.txt   checkpoints/   tensorboard/
"""

import fcntl
import json
import os
import pathlib
from types import TracebackType
from typing import Self

import jax

from jattn import config as config_lib
from jattn.config import ConfigError
from jattn.training.checkpoint import read_config
from jattn.training.experiment import Experiment, may_change


class Workdir:
    """Opens a workdir for a run of `config`: locked while it is open, released by the kernel however the run ends.

    Raises:
        ConfigError: it cannot be written, another run holds it, or it holds a run of another config.
    """

    def __init__(self, path: str | pathlib.Path, config: Experiment) -> None:
        self.path = pathlib.Path(path).absolute()
        self._config = config
        self._lock = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._lock = (self.path / '.lock').open('w')
        except OSError as error:
            raise ConfigError(f'workdir={self.path}: cannot be written ({error.strerror})') from error
        if self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f'workdir={self.path}: another run is using it') from None
            self._settle()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()

    def _settle(self) -> None:
        """Compares with the config that is there, then writes ours."""
        target = self.path / 'config.json'
        if target.exists():
            changes = config_lib.difference(read_config(self.path), self._config)
            forbidden = {path: pair for path, pair in changes.items() if not may_change(path)}
            if forbidden:
                rows = '; '.join(f'{path}: {old!r} there, {new!r} now' for path, (old, new) in forbidden.items())
                raise ConfigError(f'workdir={self.path} holds a run of another config: {rows}')
        swap = target.with_suffix('.tmp')
        swap.write_text(json.dumps(config_lib.to_json(self._config), indent=2) + '\n')
        os.replace(swap, target)
