"""Can a decoder learn two linear regressions at once in context, that share half of their covariates?

python -m experiments.run --config=icl_linear_multitask --workdir=runs/icl_linear_multitask
"""

import dataclasses

from experiments.configs import icl_linear
from jattn.testbeds import ICLLinearMultitask
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """The sizes of icl_linear, on prompts with two tasks."""
    task = ICLLinearMultitask()
    return dataclasses.replace(icl_linear.config(size), data=task.tiny() if size == 'tiny' else task)
