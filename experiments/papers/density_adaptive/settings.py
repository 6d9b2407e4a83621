"""The sizes of paper 02's rerun, and its data: few recordings, recordings with noise in some bins, synthetic bins."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.density_adaptive.model import CNNLSTMConfig
from experiments.papers.small_models import Setting
from jattn.data import FSDDConfig
from jattn.data.classes import ClassRows, hits
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch, Task
from jattn.training.optimizer import AdamWConfig
from jattn.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        seeds: of every training.
        model: the classifier.
        gates: that are compared.
        recordings: of each digit and speaker.
        steps, batch: of a training.
        bins: the synthetic task.
        bins_steps: of a training on it.
        draws: of the simulation of the published clamp.
    """

    seeds: int
    model: CNNLSTMConfig
    gates: tuple[str, ...]
    recordings: int
    steps: int
    batch: int
    bins: 'Bins'
    bins_steps: int
    draws: int

    def speech(self, path: str | None, target: str) -> FSDDConfig:
        """Few recordings of a file; None: synthetic ones."""
        return FSDDConfig(path=path, target=target, recordings=self.recordings)

    def noisy(self, path: str | None) -> 'NoisyFSDDConfig':
        """All recordings, with noise in some bins."""
        return NoisyFSDDConfig(path=path)

    def setting(self, data: FSDDConfig | Task, gate: str) -> Setting:
        """The training of the classifier behind a gate."""
        steps = self.bins_steps if isinstance(data, Task) else self.steps
        return Setting(
            model=dataclasses.replace(self.model, gate=gate),
            data=data,
            steps=steps,
            batch=self.batch,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=20),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyFSDDConfig(FSDDConfig):
    """Spoken digits whose every fourth bin is drowned in normal noise of deviation `noise`, whatever the class."""

    every: ClassVar[int] = 4

    noise: float = 3.0

    def rows(self, split: str, align: int = 1) -> ClassRows:
        rows = super().rows(split, align)
        drawn = np.random.default_rng(len(rows)).normal(size=rows.inputs.shape) * self.noise
        real = np.arange(rows.tokens)[None, :, None] < rows.lengths[:, None, None]
        is_noisy = (np.arange(self.mels) % self.every == 0)[None, None]
        inputs = rows.inputs + np.where(real & is_noisy, drawn, 0)
        return dataclasses.replace(rows, inputs=inputs.astype(np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins(Task):
    """Frames of normal noise, where a few bins carry the class: their mean is +shift or -shift.

    Attributes:
        bins, frames: of a row.
        telling: bins that carry the class.
        shift: against a deviation of 1.
    """

    kind: ClassVar[str] = 'continuous'
    output_size: ClassVar[int] = 2

    bins: int = 40
    frames: int = 48
    telling: int = 6
    shift: float = 0.15

    @property
    def input_size(self) -> int:
        return self.bins

    @functools.cached_property
    def signs(self) -> np.ndarray:
        """What the first class adds to each bin, over the shift; the second adds its negative."""
        draws = np.random.default_rng(0)
        signs = np.zeros(self.bins, np.float32)
        signs[draws.choice(self.bins, self.telling, replace=False)] = draws.choice([-1, 1], self.telling)
        return signs

    def sample(self, key: Key, batch: int) -> Batch:
        noise_key, label_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (batch,), 0, 2)
        noise = jax.random.normal(noise_key, (batch, self.frames, self.bins))
        means = self.shift * (1 - 2 * labels)[:, None, None] * jnp.asarray(self.signs)[None, None]
        return Batch(inputs=noise + means, targets=labels, mask=jnp.ones(batch))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        return {'loss': self.loss(outputs, batch), 'accuracy': Mean.of(hits(outputs, batch.targets), batch.mask)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """The log of the odds, which is linear in the telling bins' sums."""
        odds = 2 * self.shift * jnp.einsum('btf,f->b', batch.inputs, jnp.asarray(self.signs))
        return {'bayes': jnp.stack([odds / 2, -odds / 2], axis=-1)}

    def facts(self) -> dict[str, float]:
        return {'chance_accuracy': 0.5}

    def tiny(self) -> 'Bins':
        return dataclasses.replace(self, frames=12)


_SMALL = Size(
    seeds=3,
    model=CNNLSTMConfig(),
    gates=('none', 'gain', 'squeeze-excite', 'density'),
    recordings=4,
    steps=300,
    batch=32,
    bins=Bins(),
    bins_steps=200,
    draws=20_000,
)
_TINY = dataclasses.replace(
    _SMALL,
    seeds=1,
    model=CNNLSTMConfig(width=8, channels=8),
    gates=('none', 'density'),
    steps=10,
    batch=8,
    bins=Bins(frames=12),
    bins_steps=10,
    draws=2000,
)
_PAPER = dataclasses.replace(
    _SMALL, seeds=5, model=CNNLSTMConfig(width=128, channels=128, gaussians=24), recordings=20, steps=5000
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
