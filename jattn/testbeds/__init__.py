"""Synthetic tasks with exact answers. `TESTBEDS` is the one table: a new task is one more line here."""

from jattn.testbeds.associative_recall import AssociativeRecall
from jattn.testbeds.babi import Babi
from jattn.testbeds.boolean import Boolean
from jattn.testbeds.compositional_recall import CompositionalRecall
from jattn.testbeds.control import Control
from jattn.testbeds.copying import Copying
from jattn.testbeds.events import Events
from jattn.testbeds.facts_and_fibs import FactsAndFibs
from jattn.testbeds.flow_matching import FlowMatching
from jattn.testbeds.icl_linear import ICLLinear
from jattn.testbeds.icl_linear_multitask import ICLLinearMultitask
from jattn.testbeds.induction import Induction
from jattn.testbeds.landmarked import Landmarked
from jattn.testbeds.linear_classification import LinearClassification
from jattn.testbeds.mad import MAD
from jattn.testbeds.needles import Needles
from jattn.testbeds.passkey import Passkey
from jattn.testbeds.phonebook import Phonebook
from jattn.testbeds.regression import Regression
from jattn.testbeds.rereading import ReReading
from jattn.testbeds.selective_copying import SelectiveCopying
from jattn.testbeds.single_recall import SingleRecall
from jattn.testbeds.stacked_recall import StackedRecall
from jattn.testbeds.state_tracking import StateTracking
from jattn.testbeds.task import Batch, Task
from jattn.testbeds.voxels import Voxels

TESTBEDS: dict[str, Task] = {
    'associative_recall': AssociativeRecall(),
    'babi': Babi(),
    'boolean': Boolean(),
    'compositional_recall': CompositionalRecall(),
    'control': Control(),
    'copying': Copying(),
    'events': Events(),
    'facts_and_fibs': FactsAndFibs(),
    'flow_matching': FlowMatching(),
    'icl_linear': ICLLinear(),
    'icl_linear_multitask': ICLLinearMultitask(),
    'induction': Induction(),
    'landmarked': Landmarked(),
    'linear_classification': LinearClassification(),
    'mad': MAD(),
    'needles': Needles(),
    'passkey': Passkey(),
    'phonebook': Phonebook(),
    'regression': Regression(),
    'rereading': ReReading(),
    'selective_copying': SelectiveCopying(),
    'single_recall': SingleRecall(),
    'stacked_recall': StackedRecall(),
    'state_tracking': StateTracking(),
    'voxels': Voxels(),
}
