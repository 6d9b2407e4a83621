"""Can an encoder tell what each voxel of a street is a part of: the ground, a box, a cylinder or a pole?

    python -m experiments.run --config=voxels --workdir=runs/voxels
    python -m experiments.run --config=voxels --set model.mixer.cross_window=false --workdir=runs/alone

Windows of 8 x 8 places read one another by convolutions; the second line leaves each window alone. Guessing gives loss
ln 4 = 1.39, who knows the objects is always right.
"""

from jattn.mixers.scattered_linear import ScatteredLinearConfig
from jattn.models.encoder import EncoderConfig
from jattn.testbeds.voxels import Voxels
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    scenes = Voxels(grid=(4, 32, 32), tokens=512, boxes=3, cylinders=3, poles=4, reach=5.0)
    small = Experiment(
        model=EncoderConfig(width=32, layers=2, mixer=(mixer(scenes, heads=2),), norm='layer', pooler=None),
        data=scenes,
        training=TrainingConfig(
            steps=500,
            batch=4,
            optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=50),
            steps_per_call=50,
            log_every_steps=50,
            eval_every_steps=250,
            checkpoint_every_steps=250,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    street = Voxels(grid=(32, 468, 468), window=12, tokens=2**16, boxes=60, cylinders=30, poles=60, reach=75.0)
    return Experiment(
        model=EncoderConfig(
            width=128, layers=6, mixer=(mixer(street, heads=4),), norm='layer', pooler=None, dtype='bfloat16'
        ),
        data=street,
        training=TrainingConfig(
            steps=20_000,
            batch=8,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )


def mixer(scenes: Voxels, heads: int) -> ScatteredLinearConfig:
    """Scattered linear attention in the windows of the scenes."""
    return ScatteredLinearConfig(heads=heads, cross_window=True, window=scenes.window, grid=scenes.grid, use_bias=True)
