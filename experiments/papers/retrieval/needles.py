"""A decoder that finds a needle: trained by the program `experiments.run`, its checkpoint then read at other lengths.

    softmax     short rows, then rows of the length of training; a stage starts from the checkpoint of the one before
    landmark    goes on from the softmax decoder's checkpoint, on the same rows with landmarks: `--init_from`

One question a row teaches little for what a long row costs: so short rows come first.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence

from experiments.configs import passkey
from experiments.papers.contract import ClaimContext
from experiments.papers.retrieval.settings import Size, Stage
from experiments.papers.small_models import Setting, Variables, score
from jattn.contract import MixerConfig
from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Landmarked, Task
from jattn.training import checkpoint
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.loop import train
from jattn.training.optimizer import AdamWConfig

Curves = Mapping[str, Mapping[int, float]]  # what is compared -> tokens of a row -> its score
ROWS = 2**13  # tokens of an evaluation batch
PEAK_LR = 5e-3  # on short rows; a third of it on those of the length of training


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint that was read back.

    Attributes:
        config: of its run.
        params: its parameters.
    """

    config: Experiment
    params: dict

    def setting(self, mixer: MixerConfig, task: Task) -> Setting:
        """The same decoder with another mixer, or policy, on other rows."""
        model = dataclasses.replace(self.config.model, mixer=(mixer,))
        return Setting(model=model, data=task, steps=1, batch=1)

    def score(self, mixer: MixerConfig, task: Task, questions: int, context: ClaimContext) -> dict[str, float]:
        """Its metrics on rows that are the same for every mixer and task."""
        tokens = getattr(task, 'task', task).tokens
        rows = min(max(ROWS // tokens, 1), questions)
        variables: Variables = {'params': self.params}
        return score(self.setting(mixer, task), variables, task, rows, -(-questions // rows), context.key(900))


def softmax(context: ClaimContext, size: Size) -> Trained:
    """Trained on the needle with softmax attention."""
    return _train(context, size, 'softmax', SoftmaxConfig(heads=size.heads), size.stages, None)


def landmark(context: ClaimContext, size: Size) -> Trained:
    """Goes on from the checkpoint that `softmax` left, with landmarks."""
    start = _folder(context, 'softmax', len(size.stages) - 1)
    mixer = LandmarkConfig(heads=size.heads, block=size.block)
    return _train(context, size, 'landmark', mixer, size.landmark_stages, start)


def at_length(size: Size, tokens: int, landmarks: bool = False) -> Task:
    """The task at another length."""
    task = dataclasses.replace(size.passkey, tokens=tokens)
    return Landmarked(task=task, block=size.block) if landmarks else task


def curve(trained: Trained, mixer: MixerConfig, size: Size, context: ClaimContext) -> dict[int, float]:
    """length -> accuracy of a mixer, or a policy, on rows as it was trained on: with landmarks or without."""
    marked = isinstance(trained.config.data, Landmarked)
    return {
        tokens: trained.score(mixer, at_length(size, tokens, marked), size.questions, context)['accuracy']
        for tokens in size.lengths
    }


def as_text(curves: Curves) -> str:
    """Every score.

    >>> as_text({'a': {8: 1.0, 16: 0.5}, 'b': {8: 0.25}})
    'a 1.000 at 8, 0.500 at 16; b 0.250 at 8'
    """
    return '; '.join(
        f'{name} ' + ', '.join(f'{value:.3f} at {tokens}' for tokens, value in values.items())
        for name, values in curves.items()
    )


def _train(
    context: ClaimContext,
    size: Size,
    name: str,
    mixer: MixerConfig,
    stages: Sequence[Stage],
    start: pathlib.Path | None,
) -> Trained:
    for number, stage in enumerate(stages):
        workdir = _folder(context, name, number)
        last = train(_experiment(context, size, mixer, stage, start), workdir, stream=io.StringIO())
        context.say(f'{name}, {stage[2]} steps of {stage[0]} tokens: accuracy {last["eval/accuracy"]:.3f}')
        start = workdir
    _, params, config = checkpoint.load(start)
    return Trained(config, params)


def _experiment(
    context: ClaimContext, size: Size, mixer: MixerConfig, stage: Stage, start: pathlib.Path | None
) -> Experiment:
    tokens, batch, steps = stage
    peak_lr = PEAK_LR if tokens < size.passkey.tokens else PEAK_LR / 3
    call = min(steps, 25)
    return dataclasses.replace(
        passkey.config('small'),
        model=DecoderConfig(width=size.width, layers=size.layers, mixer=(mixer,), feed_forward=None, remat='none'),
        data=at_length(size, tokens, isinstance(mixer, LandmarkConfig)),
        training=TrainingConfig(
            steps=steps,
            batch=batch,
            seed=context.seed,
            init_from=None if start is None else str(start),
            optimizer=AdamWConfig(peak_lr=peak_lr, warmup_steps=20),
            steps_per_call=call,
            log_every_steps=steps,
            eval_every_steps=steps,
            checkpoint_every_steps=steps,
            eval_batches=2,
        ),
    )


def _folder(context: ClaimContext, name: str, number: int) -> pathlib.Path:
    return context.out / 'runs' / f'{name}_{number}'
