"""How well does a vision encoder tell handwritten digits apart?

    python -m experiments.run --config=mnist --set data.path=DIR/mnist.npz --workdir=runs/mnist
    python -m experiments.run --config=mnist --set data=fashion_mnist_mini --set data.path=DIR/fashion_900.npz \\
        --set model.pooler=efficient_probing --set model.pooler.queries=8 --workdir=runs/fashion

The file is any .npz with x_train, y_train, x_test, y_test, such as Keras' mnist.npz; without a path the images are
synthetic. The score is the accuracy on the whole test split.
"""

from jattn.data import MNISTConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.vision import VisionConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=VisionConfig(width=64, layers=2, mixer=(SoftmaxConfig(causal=False, rotary_base=None, heads=4),)),
        data=MNISTConfig(),
        training=TrainingConfig(
            steps=1000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=100),
            log_every_steps=50,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=157,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=VisionConfig(
            width=192, layers=12, mixer=(SoftmaxConfig(causal=False, rotary_base=None, heads=3),), dtype='bfloat16'
        ),
        data=MNISTConfig(),
        training=TrainingConfig(
            steps=10000,
            batch=256,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=40,
        ),
    )
