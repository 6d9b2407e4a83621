"""Synthetic tasks with exact answers. `TESTBEDS` is the one table: a new task is one more line here."""

from jattn.testbeds.associative_recall import AssociativeRecall
from jattn.testbeds.control import Control
from jattn.testbeds.events import Events
from jattn.testbeds.flow_matching import FlowMatching
from jattn.testbeds.icl_linear import ICLLinear
from jattn.testbeds.icl_linear_multitask import ICLLinearMultitask
from jattn.testbeds.landmarked import Landmarked
from jattn.testbeds.passkey import Passkey
from jattn.testbeds.task import Batch, Task
from jattn.testbeds.voxels import Voxels

TESTBEDS: dict[str, Task] = {
    'associative_recall': AssociativeRecall(),
    'control': Control(),
    'events': Events(),
    'flow_matching': FlowMatching(),
    'icl_linear': ICLLinear(),
    'icl_linear_multitask': ICLLinearMultitask(),
    'landmarked': Landmarked(),
    'passkey': Passkey(),
    'voxels': Voxels(),
}
