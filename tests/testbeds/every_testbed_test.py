"""What holds for every testbed: one key is one batch, on one device, on two, and under vmap.

Tests of a testbed that hold its options to the same run in make test-all.
"""

import pytest

from jattn.testbeds import TESTBEDS
from tests.marks import slow_where
from tests.testbeds.draws import assert_one_key_is_one_batch

SLOW = ('babi', 'facts_and_fibs')  # many seconds of compilation


@pytest.mark.parametrize('name', slow_where(SLOW.__contains__, TESTBEDS))
def test_one_key_is_one_batch_under_jit_vmap_and_on_two_devices(name):
    task = TESTBEDS[name].tiny()
    assert_one_key_is_one_batch(task, rows=4, atol=None if task.kind == 'discrete' else 1e-5)
