"""Checkpoints: the only file that knows Orbax.

A checkpoint `WORKDIR/checkpoints/STEP` holds the train state, the data position, the config, and for every array its
shape, dtype and checksum: Orbax restores a flipped bit or another dtype in silence. The checksum is integer arithmetic
on the device, the same for every sharding, so a state saved on one mesh is verified on another. Orbax writes into a
folder of another name and renames it at the end; a folder without its metadata was never committed, and is ignored. The
newest committed checkpoint resumes; a damaged one is an error, never skipped in silence.
"""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jattn import config as config_lib
from jattn.config import ConfigError
from jattn.training.experiment import Experiment
from jattn.training.step import TrainState
from jattn.typing import Array, PyTree

STATE, FACTS, CONFIG = 'state', 'facts', 'config'
BEST = 'eval/loss'


class DamagedCheckpoint(ConfigError):
    """A committed checkpoint that does not hold what was saved."""


class Checkpointer:
    """Saves and restores the checkpoints of a workdir.

    Args:
        workdir: its `checkpoints` folder is used.
        keep: the newest that are kept, beside the best by eval/loss.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 2) -> None:
        self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(n=1, get_metric_fn=lambda metrics: metrics[BEST], reverse=True),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[BEST],
            best_mode='min',
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=_handlers())

    def save(self, state: TrainState, position: dict[str, Any], config: Experiment, eval_loss: float | None) -> None:
        """Starts to save; the arrays are copied before this returns, so they may be donated after it."""
        step = int(state.step)
        facts = {'position': position, 'arrays': describe(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(state),
                    FACTS: ocp.args.JsonSave(facts),
                    CONFIG: ocp.args.JsonSave(config_lib.to_json(config)),
                }
            ),
            metrics={BEST: math.inf if eval_loss is None else eval_loss},
            force=True,
        )

    def latest(self) -> int | None:
        """The step of the newest committed checkpoint."""
        return latest_step(self.folder)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state, placed as `abstract` says, and the data position.

        Raises:
            DamagedCheckpoint: it cannot be read, has other arrays than the model, or a checksum differs.
        """
        return _restore(self._manager, self.folder, step, abstract)

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(folder: pathlib.Path) -> int | None:
    """The newest committed step in a folder of checkpoints, None if there is none."""
    if not folder.is_dir():
        return None
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit() and _is_committed(path)]
    return max(steps, default=None)


def restore(workdir: str | pathlib.Path, step: int | None, abstract: TrainState) -> TrainState:
    """The state of a checkpoint (None: the newest), placed as `abstract` says; changes nothing in the workdir."""
    folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    step = _require(folder, step)
    with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
        return _restore(manager, folder, step, abstract)[0]


def load(workdir: str | pathlib.Path, step: int | None = None) -> tuple[nn.Module, PyTree, Experiment]:
    """Opens a run in a notebook: `model, params, config = checkpoint.load(workdir)`.

    Args:
        workdir: of a training run.
        step: of the checkpoint; None: the newest.

    Raises:
        FileNotFoundError: there is no run or no committed checkpoint in the workdir.
        DamagedCheckpoint: see `Checkpointer.restore`.
    """
    config = read_config(pathlib.Path(workdir))
    return config.make_model(), _saved(workdir, step)['params'], config


def load_collections(workdir: str | pathlib.Path, step: int | None = None) -> dict[str, PyTree]:
    """The slow state of a run's model (`mixer_state`, `batch_stats`), empty for most; called as `load`."""
    return _saved(workdir, step).get('collections') or {}


def _saved(workdir: str | pathlib.Path, step: int | None) -> dict[str, PyTree]:
    """The arrays of a checkpoint as they were saved, on one device."""
    folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    step = _require(folder, step)
    with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        facts = _read_facts(manager, folder, step)

        def saved(metadata: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(metadata.shape, metadata.dtype, sharding=device)

        try:
            abstract = jax.tree.map(saved, manager.item_metadata(step)[STATE])
            restored = manager.restore(step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)}))[
                STATE
            ]
        except Exception as error:
            raise _damaged(folder, step, error) from error
    _verify(folder, step, facts['arrays'], restored)
    return restored


def read_config(workdir: pathlib.Path) -> Experiment:
    """The config that a run was started with."""
    path = pathlib.Path(workdir) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'workdir={workdir}: no run here (config.json is missing)')
    try:
        return config_lib.from_json(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ConfigError(f'{path}: not JSON ({error})') from error


@jax.jit
def _checksums(leaves: list[Array]) -> list[Array]:
    """Two sums mod 2^32 of each array's 32-bit words: plain, and weighted by odd numbers that differ by place.

    Integer sums do not depend on order, so they are the same on every mesh; one flipped bit changes both.
    """

    def one(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')).astype(jnp.uint32)
        place = jnp.zeros(words.shape, jnp.uint32)
        for axis, size in enumerate(words.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        return jnp.stack([jnp.sum(words, dtype=jnp.uint32), jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)])

    return [one(leaf) for leaf in leaves]


def describe(state: PyTree) -> dict[str, list]:
    """path -> [shape, dtype, checksum] of every array."""
    paths, leaves = zip(*((_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)))
    sums = jax.device_get(_checksums(list(leaves)))
    return {
        path: [list(leaf.shape), str(leaf.dtype), ''.join(f'{word:08x}' for word in np.asarray(total))]
        for path, leaf, total in zip(paths, leaves, sums)
    }


def _restore(manager: ocp.CheckpointManager, folder: pathlib.Path, step: int, abstract: TrainState) -> tuple:
    facts = _read_facts(manager, folder, step)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        saved = facts['arrays'].get(_name(path))
        if saved is None or saved[:2] != [list(leaf.shape), str(leaf.dtype)]:
            has = 'nothing' if saved is None else f'{saved[1]} {tuple(saved[0])}'
            raise DamagedCheckpoint(
                f'{folder / str(step)}: {_name(path)} is {has}, but the model has {leaf.dtype} {leaf.shape}'
            )
    try:
        state = manager.restore(step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)}))[STATE]
    except Exception as error:  # Orbax raises many kinds, bare Exception among them
        raise _damaged(folder, step, error) from error
    _verify(folder, step, facts['arrays'], state)
    return state, facts['position']


def _verify(folder: pathlib.Path, step: int, saved: dict[str, list], state: PyTree) -> None:
    found = describe(state)
    for path in saved:
        if saved.get(path) != found.get(path):
            raise DamagedCheckpoint(
                f'{folder / str(step)}: {path} does not have the checksum it was saved with: it is damaged; '
                'remove that folder to resume from the one before it'
            )


def _read_facts(manager: ocp.CheckpointManager, folder: pathlib.Path, step: int) -> dict[str, Any]:
    try:
        facts = manager.restore(step, args=ocp.args.Composite(**{FACTS: ocp.args.JsonRestore()}))[FACTS]
        facts['arrays'], facts['position']
    except Exception as error:
        raise _damaged(folder, step, error) from error
    return facts


def _damaged(folder: pathlib.Path, step: int, error: Exception) -> DamagedCheckpoint:
    reason = ' '.join(str(error).split())[:200]
    return DamagedCheckpoint(
        f'{folder / str(step)}: cannot be read ({type(error).__name__}: {reason}): the checkpoint is damaged; '
        'remove that folder to resume from the one before it'
    )


def _handlers() -> dict[str, Any]:
    json_handler = ocp.JsonCheckpointHandler
    return {STATE: ocp.StandardCheckpointHandler(), FACTS: json_handler(), CONFIG: json_handler()}


def _require(folder: pathlib.Path, step: int | None) -> int:
    """The step, or the newest one, or an error that says there is none."""
    found = latest_step(folder) if step is None else step
    if found is None or not _is_committed(folder / str(found)):
        raise FileNotFoundError(
            f'workdir={folder.parent}: no checkpoint' + ('' if step is None else f' of step {step}')
        )
    return found


def _is_committed(path: pathlib.Path) -> bool:
    return (path / '_CHECKPOINT_METADATA').is_file()


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')
