"""Kernels under a mesh: every device runs its own rows and heads.

The partitioner cannot look into a kernel and would replicate it; `jax.shard_map` over the mesh axes that rows and heads
are laid out on (by their names, `training/partition.py`) keeps the kernel local, with no communication.
"""

from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from jattn.typing import Array

ROW_AXES = ('data', 'fsdp')
HEAD_AXES = ('tensor',)


def per_shard(kernel: Callable[..., tuple[Array, Array]], rows: int, heads: int) -> Callable[..., tuple[Array, Array]]:
    """`kernel` (four arrays [B, T, H, ...] and a state [B, H, ...] to one array and a state) on each device's share.

    A mesh axis that does not divide the rows or heads is left out: there the devices repeat each other's work. Without
    a mesh, or where the caller is inside a shard_map already, the kernel is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind != AxisType.Manual]
    if not free:
        return kernel
    row_axes = _dividing(rows, [(name, mesh.shape[name]) for name in ROW_AXES if name in free])
    head_axes = _dividing(heads, [(name, mesh.shape[name]) for name in HEAD_AXES if name in free])
    tokens, state = PartitionSpec(row_axes, None, head_axes), PartitionSpec(row_axes, head_axes)
    return jax.shard_map(
        kernel,
        in_specs=(tokens, tokens, tokens, tokens, state),
        out_specs=(tokens, state),
        axis_names=set(free),
        check_vma=False,
    )


def _dividing(size: int, axes: list[tuple[str, int]]) -> tuple[str, ...] | None:
    """The names of the axes, in order, whose devices divide `size` evenly; None: no axis does."""
    names = []
    for name, devices in axes:
        if size % devices == 0:
            names.append(name)
            size //= devices
    return tuple(names) or None
