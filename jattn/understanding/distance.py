"""Which algorithm a model is nearest to: squared differences between its predictions and those of known predictors.

    d_name(t) = mean over rows of |f(t) - g_name(t)|^2          at every scored place t

As in Akyurek et al. (2022), "What learning algorithm is in-context learning?": a model's error says how good it is,
its distances say what it is. Two predictors that are equally good may lie far apart, and the nearest one may change
along a prompt: after few examples gradient descent, after many least squares. They divide by the number of
coordinates, F; here that is left to the caller, who knows the task's `normaliser`.

The predictions of the references are `task.baselines(batch)`, which are made of the inputs alone. `metrics` of the
testbeds of regression report the mean over all places; these are the curves.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from jattn.nn.losses import Mean
from jattn.typing import Array, Float, axis_sizes


def distances(
    outputs: Float[Array, 'B T F'], references: Mapping[str, Float[Array, 'B T F']], mask: Float[Array, 'B T']
) -> dict[str, Mean]:
    """The curve [T] of each reference, as sums and counts: those of several batches add up.

    Args:
        outputs: the model's, values.
        references: name -> what it predicts.
        mask: which places are scored; at a place that is not, the count is 0.

    Raises:
        ValueError: shapes differ.

    >>> outputs, mask = jnp.array([[[1.0], [5.0]], [[3.0], [5.0]]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> found = distances(outputs, {'zero': jnp.zeros((2, 2, 1)), 'itself': outputs}, mask)
    >>> found['zero'].value().tolist(), found['itself'].value().tolist()
    ([5.0, 0.0], [0.0, 0.0])
    """
    found = {}
    for name, said in references.items():
        axis_sizes('distances', outputs=(outputs, 'B T F'), mask=(mask, 'B T'), **{name: (said, 'B T F')})
        found[name] = Mean.of(jnp.sum(jnp.square(outputs - said), axis=-1), mask, axis=0)
    return found
