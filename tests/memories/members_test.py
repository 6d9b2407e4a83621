"""Every row of Miras' Table 1, run from one class by its config, equals its own recurrence token by token in numpy."""

import jax
import numpy as np
import pytest

from experiments.papers.miras.recurrences import ROWS
from experiments.papers.miras.table import config, largest_error
from jattn.memories import MEMORIES


@pytest.mark.parametrize('name', ROWS)
def test_a_row_of_table_1_equals_its_own_recurrence(name):
    with jax.enable_x64(True):
        assert largest_error(ROWS[name], seed=1, dtype=np.float64) < 1e-10


def test_another_rows_recurrence_is_told_apart():
    with jax.enable_x64(True):
        row = ROWS['Gated DeltaNet']
        wrong = type(row)(row.member, ROWS['Longhorn'].recurrence)
        assert largest_error(wrong, seed=1, dtype=np.float64) > 1e-2


def test_rows_are_run_with_the_choices_of_their_members():
    for row in ROWS.values():
        cfg, member = config(row), MEMORIES[row.member]
        assert row.retention in (None, cfg.retention)
        own = () if row.retention else ('retention',)
        for choice in ('architecture', 'bias', 'learner', 'gates', *own):
            assert getattr(cfg, choice) == getattr(member, choice)
