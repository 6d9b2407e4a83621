"""What training draws of a testbed at a step."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import TESTBEDS, Passkey
from jattn.testbeds.task import Task
from jattn.training.feed import draw


@pytest.mark.parametrize('name', TESTBEDS)
def test_a_step_is_the_third_thing_that_every_task_is_told(name):
    # A task whose own method of this name took something else there was once trained on rows without a needle.
    expected = inspect.signature(Task.sample_at).parameters
    assert list(inspect.signature(type(TESTBEDS[name]).sample_at).parameters) == list(expected)


def test_a_late_step_draws_rows_as_any_other():
    task, root = Passkey(tokens=24), jax.random.key(0)
    late = draw(task, root, jnp.int32(50), 4)
    own = task.sample(jax.random.fold_in(root, 50), 4)
    jax.tree.map(np.testing.assert_array_equal, late, own)
    assert float(jnp.max(late.meta['depth'])) <= 1
    exact = task.metrics(task.baselines(late)['look_up'], late)['accuracy']
    assert float(exact.value()) == 1
