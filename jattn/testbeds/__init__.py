"""Synthetic tasks with exact answers. `TESTBEDS` is the one table: a new task is one more line here."""

from jattn.testbeds.icl_linear import ICLLinear
from jattn.testbeds.icl_linear_multitask import ICLLinearMultitask
from jattn.testbeds.task import Batch, Task

TESTBEDS: dict[str, Task] = {
    'icl_linear': ICLLinear(),
    'icl_linear_multitask': ICLLinearMultitask(),
}
