"""Activation patching over layer, head and position: which values carry what makes two runs differ (Meng et al. 2022).

    values[l, n] = metric(on `corrupted`, part n of layer l's site as on `clean`) - metric(on `corrupted`)

With `clean` and `corrupted` exchanged the same call asks what breaks the clean run, in place of what restores it.
"""

from collections.abc import Mapping

from flax import linen as nn

from jattn.contract import Context
from jattn.typing import Array, PyTree
from jattn.understanding import capture
from jattn.understanding.interventions import Effects, Metric, Replacement, check_pair, shapes_of, sweep


def patch(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    *,
    site: str = 'resid_post',
    axis: str = 'position',
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 4,
) -> Effects:
    """The change of the metric on `corrupted` when one layer's site is, at one position or head, as it is on `clean`.

    Args:
        model: a trunk.
        params: its parameters.
        clean, corrupted: inputs of one shape.
        metric: of the outputs.
        site: what is patched, [B, T, ...] or by head [B, T, H, ...]; of patterns, [B, H, T, S], heads alone.
        axis: 'position' (N = T), 'head' (N = H), 'unit' (the last axis) or 'layer' (N = 1).
        context: positions and segments of both inputs.
        collections: the model's slow state, if it has any.
        state: what stands before both inputs, from `capture.run`.
        batch_size: points of the sweep that run at once.

    Raises:
        ValueError: shapes differ; the site is in no layer, or has no such axis.
    """
    check_pair('patch', clean, corrupted)
    run = dict(context=context, collections=collections, state=state)
    values = capture.run(model, params, clean, sites=[site], **run).values[site]
    replacement = Replacement(site, axis, shapes_of('patch', site, axis, values), values)
    return sweep(model, params, corrupted, metric, replacement, **run, batch_size=batch_size)
