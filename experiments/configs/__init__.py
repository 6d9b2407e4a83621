"""The shipped experiments, one question a file; each exposes `config(size) -> Experiment`."""

import importlib
import pkgutil
from collections.abc import Iterable

from jattn.config import ConfigError, nearest, override
from jattn.contract import MixerConfig
from jattn.data import CORPORA, Corpus
from jattn.memories.architecture import ARCHITECTURES, Architecture
from jattn.memories.bias import BIASES, Bias
from jattn.memories.gates import GATES, Gate
from jattn.memories.learner import LEARNERS, Learner
from jattn.memories.retention import RETENTIONS, Retention
from jattn.mixers import MIXERS
from jattn.models import MODELS
from jattn.models.trunk import TrunkConfig
from jattn.poolers import POOLERS
from jattn.poolers.pooler import PoolerConfig
from jattn.testbeds import TESTBEDS
from jattn.testbeds.curriculum import CURRICULA, Curriculum
from jattn.testbeds.task import Task
from jattn.training.experiment import Experiment
from jattn.training.optimizer import OPTIMIZERS, OptimizerConfig

# The parts that --set can swap by name.
TABLES = {
    TrunkConfig: MODELS,
    MixerConfig: MIXERS,
    PoolerConfig: POOLERS,
    Architecture: ARCHITECTURES,
    Bias: BIASES,
    Retention: RETENTIONS,
    Learner: LEARNERS,
    Gate: GATES,
    Task: TESTBEDS,
    Curriculum: CURRICULA,
    Corpus: CORPORA,
    OptimizerConfig: OPTIMIZERS,
}


def names() -> list[str]:
    """The names for --config."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def summary(name: str) -> str:
    """The first line of a config's file: its question."""
    return (importlib.import_module(f'{__name__}.{name}').__doc__ or '').splitlines()[0]


def load(name: str, size: str = 'small', assignments: Iterable[str] = ()) -> Experiment:
    """The experiment of a name and a size, then changed by `path=value` assignments in order.

    Raises:
        ConfigError: an unknown name, or an assignment that does not fit.
    """
    if name not in names():
        raise ConfigError(f'--config={name}: no such config; {nearest(name, names())}')
    config = importlib.import_module(f'{__name__}.{name}').config(size)
    return override(config, assignments, TABLES)
