"""Can FIT learn the velocity of a flow from noise to a few known points, whose best answer is known in closed form?

    python -m experiments.run --config=flow_matching --workdir=runs/flow

`eval/distance/best` is the squared distance to the best velocity. Samples are `jattn.testbeds.flow_matching.integrate`.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.fit_denoiser import FITDenoiserConfig
from jattn.testbeds import FlowMatching
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=denoiser(width=64, heads=4, group=8, latents=4, groups=8),
        data=FlowMatching(),
        training=TrainingConfig(
            steps=500,
            batch=32,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=50),
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
    return Experiment(
        model=denoiser(width=256, heads=8, group=64, latents=16, groups=64, dtype='bfloat16'),
        data=FlowMatching(tokens=4096, features=16, points=64),
        training=TrainingConfig(
            steps=20_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )


def denoiser(width: int, heads: int, **fields: object) -> FITDenoiserConfig:
    """Heads alike inside the groups and over the latents."""
    mixer = SoftmaxConfig(heads=heads, causal=False, rotary_base=None)
    return FITDenoiserConfig(width=width, local=mixer, latent=mixer, layers='(1)1(1)1(1)', **fields)
