"""A landmark run goes on from a plain softmax checkpoint: all parameters fit, the vocabulary has one token more."""

import io

import numpy as np

from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Landmarked, Passkey
from jattn.training import checkpoint
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.loop import train
from jattn.training.optimizer import AdamWConfig

TASK = Passkey(tokens=16, digits=1, keys=2, noise=4)


def run(workdir, mixer, data, **training):
    optimizer = AdamWConfig(peak_lr=1e-9, warmup_steps=1)
    stream, config = io.StringIO(), TrainingConfig(steps=1, batch=4, eval_batches=1, optimizer=optimizer, **training)
    model = DecoderConfig(width=16, layers=2, mixer=(mixer,), feed_forward=None)
    train(Experiment(model=model, data=data, training=config), workdir, stream=stream)
    return checkpoint.load(workdir)[1], stream.getvalue()


def test_a_landmark_run_starts_from_a_softmax_checkpoint(tmp_path):
    plain, _ = run(tmp_path / 'plain', SoftmaxConfig(heads=2), TASK)
    data = Landmarked(task=TASK, block=4)
    mixer = LandmarkConfig(heads=2, block=4)
    tuned, said = run(tmp_path / 'tuned', mixer, data, init_from=str(tmp_path / 'plain'), seed=7)
    size = TASK.input_size
    assert f'grown: embedding ({size}, 16) -> ({size + 1}, 16)' in said
    assert 'new: ' not in said and 'not used: ' not in said
    for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
        new, old = (params['body']['block_0']['mixer'][name]['kernel'] for params in (tuned, plain))
        np.testing.assert_allclose(new, old, atol=1e-7)
    np.testing.assert_allclose(tuned['embedding'][:size], plain['embedding'], atol=1e-7)
    assert np.any(tuned['embedding'][size] != 0)
