"""The published comparison: which tasks, at which sizes, which mixers, which learning rates.

A task of the suite is a config of `experiments/configs/` with some of its fields changed, so that a run at size small
takes less than a minute on two CPU cores, and other tasks that its fitted models are scored on: longer rows. All mixers
see the same batches and are scored on the same rows.
"""

import dataclasses
from collections.abc import Mapping

RATES = (1e-3, 3e-3, 1e-2)
MIXERS = (
    'softmax',
    'softmax[window=8]',
    'linear_attention',
    'gla',
    'mamba2',
    'deltanet',
    'deltanet[gates.step.bound=2]',  # transitions with eigenvalues in [-1, 1]
    'gated_deltanet',
    'aaren',
    'mamba',
    'rwkv7',
    'yaad',
    'titans_lmm',
)
# The tables of the report.
REGRESSION = 'T1 Regression in context: squared error'
BOOLEAN = 'T2 Boolean functions in context: accuracy over all points'
RECALL = 'T3 Recall: accuracy'
TRACKING = 'T4 State tracking: accuracy'
LONG = 'T5 Long context: accuracy'
CLAIMS = 'T6 Paired claims: accuracy of single claims (pairs: table of the task)'
# Models and budgets of size small; a task may change them again.
SMALL = (
    'model.width=32',
    'model.layers=2',
    'model.remat=none',
    'training.steps=600',
    'training.batch=32',
    'training.steps_per_call=60',
    'training.optimizer.warmup_steps=60',
    'training.eval_batches=32',
)

SMALL_BOOLEAN = ('data.inputs=8', 'data.points=24', 'training.batch=24')
LONGER = {'2x': ('tokens=32',), '4x': ('tokens=64',)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A task of the comparison.

    Attributes:
        group: the table of the report that it stands in.
        config: its config.
        chosen: assignments at every size but tiny: which of the config's tasks it is.
        small: further ones at size small.
        tests: name -> assignments to the data alone; fitted models are scored on these too. Names like 4x (the length)
            and '12 pairs' have pictures.
    """

    group: str
    config: str
    chosen: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    tests: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def assignments(self, size: str) -> tuple[str, ...]:
        """What of the config is changed."""
        return (*SMALL, *self.chosen, *self.small) if size == 'small' else self.chosen


SUITE: dict[str, SuiteTask] = {
    'icl_linear': SuiteTask(
        group=REGRESSION, config='icl_linear', small=('data.dim=3', 'data.context=12', 'training.batch=64')
    ),
    'conjunction': SuiteTask(
        group=BOOLEAN, config='boolean', chosen=('data.function=conjunction',), small=SMALL_BOOLEAN
    ),
    'majority': SuiteTask(group=BOOLEAN, config='boolean', chosen=('data.function=majority',), small=SMALL_BOOLEAN),
    'sparse_parity': SuiteTask(
        group=BOOLEAN, config='boolean', chosen=('data.function=sparse_parity',), small=SMALL_BOOLEAN
    ),
    'mqar': SuiteTask(
        group=RECALL,
        config='associative_recall',
        small=('data.vocabulary=32', 'data.tokens=32'),
        tests={f'{pairs} pairs': (f'pairs={pairs}', f'tokens={4 * pairs}') for pairs in (2, 4, 12)},
    ),
    'forgetting_mqar': SuiteTask(
        group=RECALL,
        config='associative_recall',
        chosen=('data.overwrites=2',),
        small=('data.vocabulary=32', 'data.tokens=40', 'data.overwrites=4'),
    ),
    'induction': SuiteTask(
        group=RECALL, config='induction', small=('data.tokens=16', 'training.batch=64'), tests=LONGER
    ),
    'selective_copying': SuiteTask(group=RECALL, config='selective_copying', small=('data.tokens=32', 'data.copies=6')),
    'parity': SuiteTask(
        group=TRACKING,
        config='state_tracking',
        chosen=('data.language=parity',),
        small=('data.tokens=16', 'training.batch=64'),
        tests=LONGER,
    ),
    'a5': SuiteTask(
        group=TRACKING,
        config='state_tracking',
        chosen=('data.language=a5',),
        small=('data.tokens=16', 'training.batch=64'),
        tests=LONGER,
    ),
    'babi': SuiteTask(
        group=LONG,
        config='babi',
        small=('data.tokens=32', 'data.most_facts=4', 'data.noise=8'),
        tests={'2x': ('tokens=64',), '4x': ('tokens=128',)},
    ),
    'paired_claims': SuiteTask(
        group=CLAIMS,
        config='facts_and_fibs',
        small=(
            'data.events=3',
            'data.entities=3',
            'data.places=2',
            'data.objects=2',
            'data.most=2',
            'data.noise=1',
        ),
        tests={'paired': ('paired=true',)},
    ),
}
