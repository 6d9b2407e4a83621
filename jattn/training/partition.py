"""How a step runs on many devices: jit over a mesh by logical-axis rules (the main path), or pmap (data parallel).

Both offer the same calls, so the loop knows neither: `init`, `train` (n steps in one compiled call), `evaluate`, and
`unreplicated` / `replicated`, the form of the state that checkpoints hold. The state is initialised under jit with
output shardings, so that no device ever holds the whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn.config import ConfigError
from jattn.testbeds.task import Batch
from jattn.training.experiment import MeshConfig
from jattn.training.step import TrainState
from jattn.typing import Array, Key, PyTree

AXES = ('data', 'fsdp', 'tensor')
# Logical axis of a parameter -> axis of the mesh. Names that are not listed are not sharded.
RULES = {'embed': 'fsdp', 'vocab': 'tensor', 'heads': 'tensor', 'mlp': 'tensor'}
ROWS = PartitionSpec(('data', 'fsdp'))

InitFn = Callable[[Key], TrainState]  # key -> boxed state
# (axis of the devices under pmap or None, state, batch)
StepFn = Callable[[str | None, TrainState, Batch], tuple[TrainState, dict[str, Array]]]
EvalFn = Callable[[str | None, TrainState, Batch], dict]
# (step) -> batch drawn on the device, or None where batches come from the host.
DrawFn = Callable[[Array], Batch] | None


def make_mesh(config: MeshConfig, batch: int) -> Mesh:
    """The mesh of a run.

    Raises:
        ConfigError: too few devices, a batch that does not divide over data and fsdp, or (with several processes)
            devices left over.
    """
    there = jax.device_count()
    data = config.data or max(there // (config.fsdp * config.tensor), 1)
    shape = (data, config.fsdp, config.tensor)
    needed = data * config.fsdp * config.tensor
    if needed > there:
        raise ConfigError(
            f'training.mesh: data={data} x fsdp={config.fsdp} x tensor={config.tensor} needs {needed} devices, '
            f'but there are {there}'
        )
    if needed < there and jax.process_count() > 1:
        raise ConfigError(
            f'training.mesh: {needed} devices of {there} are used, but with several processes all must be'
        )
    check_divides('training.batch', batch, 'training.mesh.data x fsdp', data * config.fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:needed])


def check_divides(name: str, value: int, by_name: str, by: int) -> None:
    """An error in one line where `value` is not a multiple of `by`."""
    if value % by:
        raise ConfigError(f'{name}={value} must be a multiple of {by_name}={by}')


def repeat(step: Callable, draw: DrawFn, state: TrainState, batches: PyTree, n: Array) -> tuple[TrainState, dict]:
    """n steps in one call; n is an argument: one program serves every call, so that resumed runs are bit-identical."""

    def body(i: Array, carry: tuple) -> tuple:
        state, _ = carry
        batch = draw(state.step) if draw else jax.tree.map(lambda x: x[i], batches)
        return step(state, batch)

    _, metrics = jax.eval_shape(lambda: body(jnp.int32(0), (state, None)))
    return jax.lax.fori_loop(0, n, body, (state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)))


class JitPartition:
    """jit over a mesh: batches by rows, parameters and optimizer state by RULES."""

    def __init__(self, mesh: Mesh, init: InitFn, step: StepFn, evaluate: EvalFn, draw: DrawFn = None) -> None:
        self.mesh = mesh
        boxed = jax.eval_shape(init, jax.random.key(0))
        self.sharding = _shardings(boxed, mesh)
        self.abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), self.sharding
        )
        _check_shards(self.abstract)
        rows, everywhere = NamedSharding(mesh, ROWS), NamedSharding(mesh, PartitionSpec())
        self._rows, self._stacked = rows, NamedSharding(mesh, PartitionSpec(None, *ROWS))
        if draw is not None:
            drawn = draw
            draw = lambda step: jax.lax.with_sharding_constraint(drawn(step), rows)
        self._init = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=self.sharding)
        self._train = jax.jit(
            functools.partial(repeat, functools.partial(step, None), draw),
            in_shardings=(self.sharding, None if draw else self._stacked, None),
            out_shardings=(self.sharding, everywhere),
            donate_argnums=0,
        )
        self._evaluate = jax.jit(
            functools.partial(evaluate, None), in_shardings=(self.sharding, rows), out_shardings=everywhere
        )

    def init(self, key: Key) -> TrainState:
        """The state before the first step."""
        with jax.set_mesh(self.mesh):
            return self._init(key)

    def train(self, state: TrainState, batches: list[Batch] | None, n: int) -> tuple[TrainState, dict[str, Array]]:
        """n steps, on these batches (this process's rows) or on drawn ones; the metrics are those of the last."""
        with jax.set_mesh(self.mesh):
            stacked = None if batches is None else self._put(stack(batches), self._stacked)
            return self._train(state, stacked, n)

    def evaluate(self, state: TrainState, batch: Batch) -> dict:
        """The metrics of one batch, as `Mean`s."""
        with jax.set_mesh(self.mesh):
            return self._evaluate(state, self._put(batch, self._rows))

    def unreplicated(self, state: TrainState) -> TrainState:
        """The state as checkpoints hold it: each array once."""
        return state

    def replicated(self, state: TrainState) -> TrainState:
        """The state as `train` takes it."""
        return state

    def first(self, scalar: Array) -> Array:
        """A scalar of the state, once."""
        return scalar

    def _put(self, batch: Batch, sharding: NamedSharding) -> Batch:
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


class PmapPartition:
    """pmap over the devices of one process: every device holds the whole state and its rows of the batch."""

    AXIS = 'data'

    def __init__(
        self, devices: int | None, batch: int, init: InitFn, step: StepFn, evaluate: EvalFn, draw: DrawFn = None
    ) -> None:
        if jax.process_count() > 1:
            raise ConfigError('training.partition=pmap runs in one process; use jit with several')
        there = jax.local_device_count()
        self.count = devices or there
        if self.count > there:
            raise ConfigError(f'training.mesh.data={self.count} needs {self.count} devices, but there are {there}')
        check_divides('training.batch', batch, 'the number of devices', self.count)
        self.devices = jax.local_devices()[: self.count]
        self._init = jax.jit(lambda key: nn.unbox(init(key)))
        self.abstract = jax.eval_shape(self._init, jax.random.key(0))
        own_draw = None if draw is None else functools.partial(self._own_rows, draw)
        self._train = jax.pmap(
            functools.partial(repeat, functools.partial(step, self.AXIS), own_draw),
            axis_name=self.AXIS,
            devices=self.devices,
            in_axes=(0, None if draw else 1, None),
            donate_argnums=0,
        )
        self._evaluate = jax.pmap(functools.partial(evaluate, self.AXIS), axis_name=self.AXIS, devices=self.devices)

    def init(self, key: Key) -> TrainState:
        """The state before the first step, on every device."""
        return self.replicated(self._init(key))

    def train(self, state: TrainState, batches: list[Batch] | None, n: int) -> tuple[TrainState, dict[str, Array]]:
        """n steps; see `JitPartition.train`."""
        stacked = None if batches is None else self._split(stack(batches), axis=1)
        state, metrics = self._train(state, stacked, n)
        return state, jax.tree.map(lambda x: x[0], metrics)

    def evaluate(self, state: TrainState, batch: Batch) -> dict:
        """The metrics of one batch, as `Mean`s."""
        return jax.tree.map(lambda x: x[0], self._evaluate(state, self._split(batch, axis=0)))

    def unreplicated(self, state: TrainState) -> TrainState:
        """The state as checkpoints hold it: each array once."""
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x[0])), state)

    def replicated(self, state: TrainState) -> TrainState:
        """The state on every device, as `train` takes it."""
        mesh = Mesh(np.array(self.devices), (self.AXIS,))
        sharding = NamedSharding(mesh, PartitionSpec(self.AXIS))
        return jax.tree.map(
            lambda x: jax.device_put(np.broadcast_to(np.asarray(x)[None], (self.count, *x.shape)), sharding), state
        )

    def first(self, scalar: Array) -> Array:
        """A scalar of the state, once."""
        return scalar[0]

    def _split(self, batch: Batch, axis: int) -> Batch:
        """[.., rows, ..] -> [.., devices, rows / devices, ..]."""
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(*x.shape[:axis], self.count, -1, *x.shape[axis + 1 :]), batch
        )

    def _own_rows(self, draw: Callable[[Array], Batch], step: Array) -> Batch:
        """Every device draws the whole batch and keeps its rows: the same batch on any number of devices."""
        here = jax.lax.axis_index(self.AXIS)

        def own(x: Array) -> Array:
            rows = x.shape[0] // self.count
            return jax.lax.dynamic_slice_in_dim(x, here * rows, rows)

        return jax.tree.map(own, draw(step))


Partition = JitPartition | PmapPartition


def stack(batches: list[Batch]) -> Batch:
    """Batches of the host on a leading axis of steps."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *batches)


def _shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every array of a boxed tree, by RULES; arrays without names are whole on every device."""

    def place(node: Any) -> PyTree:
        names = node.names if isinstance(node, nn.LogicallyPartitioned) else ()
        sharding = NamedSharding(mesh, PartitionSpec(*(RULES.get(name) for name in names)))
        return jax.tree.map(lambda _: sharding, nn.unbox(node))

    return jax.tree.map(place, boxed, is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned))


def _check_shards(abstract: PyTree) -> None:
    """Names the first array whose axis does not divide over its axis of the mesh."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        for axis, names in enumerate(leaf.sharding.spec):
            if names is None:
                continue
            names = names if isinstance(names, tuple) else (names,)
            shards = int(np.prod([leaf.sharding.mesh.shape[name] for name in names]))
            if leaf.shape[axis] % shards:
                raise ConfigError(
                    f'{jax.tree_util.keystr(path, simple=True, separator=".")}: axis {axis} of shape {leaf.shape} '
                    f'must be a multiple of training.mesh.{"x".join(names)}={shards}'
                )
