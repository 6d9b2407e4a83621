"""Training with a momentum copy: on labels, and before them by contrast of long and short clips.

The copy is part of this loop's state, beside the parameters: it follows them after every step, and what it says of the
tokens is handed to the classifier as `context.source`. A training set is `clips` videos, each drawn from its own key.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from experiments.papers.contract import ClaimContext
from experiments.papers.selective.settings import (
    GAPS,
    MASKED,
    MOMENTUM,
    PLAIN,
    PRETRAINED,
    RANDOM,
    RAW,
    Size,
    classifier,
)
from jattn.contract import Context
from jattn.data.images import SIDE, MNISTConfig
from jattn.models.selective_s4 import SelectiveS4Config
from jattn.nn.losses import cross_entropy
from jattn.nn.side_channels import LOSSES
from jattn.testbeds import Batch
from jattn.testbeds.moving_digits import clip
from jattn.training.contrast import follow, long_short_loss
from jattn.typing import Array, Float, Int32, Key, PyTree

SELECTION = {PLAIN: 'none', RANDOM: 'random', MOMENTUM: 'generator', RAW: 'generator', PRETRAINED: 'generator'}
CALL = 100  # steps of a compiled call
DATA = 2**30  # behind every step: the key of the training videos


@struct.dataclass
class State:
    """What training changes."""

    params: PyTree
    copy: PyTree
    opt_state: PyTree
    step: Array


@struct.dataclass
class Glyphs:
    """Images of digits, and their classes."""

    images: Float[Array, 'N Y X']
    classes: Int32[Array, 'N']


def digits(context: ClaimContext, size: Size, split: str) -> Glyphs:
    """Those of DATA_DIR/mnist, or synthetic patterns; shrunk, so that they have room on the canvas."""
    rows = MNISTConfig(path=context.data('mnist')).rows(split)
    chosen = np.flatnonzero(rows.labels < size.video.classes)[:4000]
    shrink = next(factor for factor in (1, 2, 4, 7, 14) if SIDE // factor < size.video.canvas)
    side = SIDE // shrink
    images = rows.inputs[chosen][..., 0].reshape(len(chosen), side, shrink, side, shrink).mean(axis=(2, 4))
    return Glyphs(jnp.asarray(images, jnp.float32), jnp.asarray(rows.labels[chosen]))


@functools.partial(jax.jit, static_argnums=0)
def videos(size: Size, glyphs: Glyphs, key: Key, numbers: Int32[Array, 'B']) -> Batch:
    """The videos of these numbers below a key."""
    one = lambda n: size.video.sample(jax.random.fold_in(key, n), 1, glyphs.images, glyphs.classes)
    return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(numbers))


def guide(model: SelectiveS4Config, copy: PyTree, inputs: Array, guided: bool) -> Context:
    """What the generator is told: what the copy makes of every token, or nothing."""
    if not guided:
        return Context()
    features = model.make().apply({'params': copy}, inputs, method='features')
    return Context(source=jax.lax.stop_gradient(features))


def train(
    context: ClaimContext, size: Size, name: str, clips: int, key: Key, start: PyTree | None = None
) -> tuple[PyTree, PyTree]:
    """A classifier on `clips` labelled videos: its parameters and their copy."""
    glyphs = digits(context, size, 'train')
    model = classifier(size, SELECTION[name], size.video.outputs, MASKED)
    state = _start(size, model, size.steps, key, start)
    for _ in range(-(-size.steps // CALL)):
        state, loss = _label_steps(
            size, model, name in (MOMENTUM, PRETRAINED), min(CALL, size.steps), clips, glyphs, key, state
        )
    context.say(f'{name}, {clips} clips: loss {float(loss):.3f}')
    return state.params, state.copy


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _label_steps(
    size: Size,
    model: SelectiveS4Config,
    guided: bool,
    count: int,
    clips: Array,
    glyphs: Glyphs,
    key: Key,
    state: State,
) -> tuple[State, Array]:
    def loss(params: PyTree, copy: PyTree, batch: Batch, key: Key) -> Array:
        train = guide(model, copy, batch.inputs, guided).replace(train=True)
        (outputs, _), found = model.make().apply(
            {'params': params}, batch.inputs, train, mutable=[LOSSES], rngs={'dropout': key}
        )
        ratio = found.get(LOSSES, {}).get('keep_ratio', 0.0)
        own = cross_entropy(outputs, batch.targets).value()
        return own + size.ratio_weight * ratio, own

    def one_step(state: State, _: None) -> tuple[State, Array]:
        step_key = jax.random.fold_in(key, state.step)
        numbers = jax.random.randint(step_key, (size.batch,), 0, clips)
        batch = videos(size, glyphs, jax.random.fold_in(key, DATA), numbers)
        gradient, own = jax.grad(loss, has_aux=True)(state.params, state.copy, batch, jax.random.fold_in(step_key, 1))
        return _after(size, size.steps, state, gradient), own

    state, losses = jax.lax.scan(one_step, state, None, length=count)
    return state, jnp.mean(losses)


def pretrain(context: ClaimContext, size: Size, key: Key) -> PyTree:
    """The parameters after LSMCL, but for the read-out, which was the contrast's."""
    glyphs = digits(context, size, 'train')
    model = classifier(size, 'none', size.embedding, MASKED)
    state = _start(size, model, size.pretrain_steps, key, None)
    for _ in range(-(-size.pretrain_steps // CALL)):
        state, loss = _contrast_steps(size, model, min(CALL, size.pretrain_steps), glyphs, key, state)
    context.say(f'LSMCL: loss {float(loss):.3f}, of a guess {2 * np.log(size.batch):.3f}')
    return {name: leaf for name, leaf in state.params.items() if name != 'output'}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _contrast_steps(
    size: Size, model: SelectiveS4Config, count: int, glyphs: Glyphs, key: Key, state: State
) -> tuple[State, Array]:
    def encode(params: PyTree, inputs: Array, shown: Array) -> Array:
        return model.make().apply({'params': params}, inputs, Context(segments=shown.astype(jnp.int32)))[0]

    def clips(step_key: Key) -> tuple[Array, Array]:
        """A long and a short clip of some of the training videos, at random places."""
        numbers = jax.random.randint(step_key, (size.batch,), 0, size.clips)
        batch = videos(size, glyphs, jax.random.fold_in(key, DATA), numbers)
        taken = []
        for n, stride in enumerate(size.strides):
            room = size.video.frames - (size.clip_frames - 1) * stride
            start = jax.random.randint(jax.random.fold_in(step_key, n), (size.batch,), 0, room)
            each = size.video.grid[0] * size.video.grid[1]
            taken.append(clip(batch.inputs, start, size.clip_frames, stride, each))
        return tuple(taken)

    def one_step(state: State, _: None) -> tuple[State, Array]:
        step_key = jax.random.fold_in(key, state.step)
        long, short = clips(step_key)
        loss = lambda params: long_short_loss(
            encode, params, state.copy, long, short, jax.random.fold_in(step_key, DATA)
        ).value()
        value, gradient = jax.value_and_grad(loss)(state.params)
        return _after(size, size.pretrain_steps, state, gradient), value

    state, losses = jax.lax.scan(one_step, state, None, length=count)
    return state, jnp.mean(losses)


def score(
    context: ClaimContext, size: Size, name: str, params: PyTree, copy: PyTree, key: Key, evaluation: str = GAPS
) -> dict[str, float]:
    """Accuracy over held-out videos of other digits; and of the kept tokens the share on events, over the base rate."""
    glyphs = digits(context, size, 'test')
    model = classifier(size, SELECTION[name], size.video.outputs, evaluation)
    found = [
        _score(size, model, name in (MOMENTUM, PRETRAINED), glyphs, key, params, copy, jnp.arange(at, at + size.batch))
        for at in range(0, size.scored, size.batch)
    ]
    hits, on_events, kept, events, tokens = np.sum(np.asarray(found, np.float64), axis=0)
    return {
        'accuracy': hits / len(found) / size.batch,
        'enriched': (on_events / max(kept, 1)) / (events / tokens),
        'events': events / tokens,
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score(
    size: Size,
    model: SelectiveS4Config,
    guided: bool,
    glyphs: Glyphs,
    key: Key,
    params: PyTree,
    copy: PyTree,
    numbers: Array,
) -> tuple[Array, ...]:
    batch = videos(size, glyphs, key, numbers)
    outputs, kept = selected(model, params, guide(model, copy, batch.inputs, guided), batch.inputs)
    eventful = batch.meta['eventful']
    hits = jnp.sum(jnp.argmax(outputs, axis=-1) == batch.targets)
    counts = (jnp.sum(kept * eventful), jnp.sum(kept), jnp.sum(eventful), eventful.size)
    return tuple(jnp.asarray(value, jnp.float32) for value in (hits, *counts))


def selected(model: SelectiveS4Config, params: PyTree, context: Context, inputs: Array) -> tuple[Array, Array]:
    """The outputs, and which tokens were kept [B, T]."""
    (outputs, _), found = model.make().apply({'params': params}, inputs, context, mutable=['taps'])
    return outputs, found['taps'].get('kept', jnp.ones(inputs.shape[:2]))


def _start(size: Size, model: SelectiveS4Config, steps: int, key: Key, start: PyTree | None) -> State:
    """New parameters, or those of an earlier stage where it has them; the copy is equal."""
    example = jnp.zeros((1, size.video.tokens, size.video.patch**2))
    params = nn.unbox(jax.jit(model.make().init)(key, example))['params'] | (start or {})
    return State(params, params, _optimizer(size, steps).init(params), jnp.int32(0))


def _after(size: Size, steps: int, state: State, gradient: PyTree) -> State:
    updates, opt_state = _optimizer(size, steps).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(params, follow(state.copy, params, size.follows), opt_state, state.step + 1)


def _optimizer(size: Size, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, size.peak_lr, min(50, steps // 4), steps, size.peak_lr / 20)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def memory(size: Size, keep: float) -> int:
    """Bytes of temporaries of one evaluation from given features on, of a long video."""
    video = dataclasses.replace(size.video, frames=size.memory_frames)
    model = dataclasses.replace(classifier(size, 'generator', video.outputs), keep=keep, max_positions=video.tokens)
    inputs = jax.ShapeDtypeStruct((1, video.tokens, video.patch**2), jnp.float32)
    features = jax.ShapeDtypeStruct((1, video.tokens, size.width), jnp.float32)
    params = nn.unbox(jax.eval_shape(model.make().init, jax.random.key(0), inputs))['params']
    run = lambda params, x, features: model.make().apply({'params': params}, x, Context(source=features))[0]
    return jax.jit(run).lower(params, inputs, features).compile().memory_analysis().temp_size_in_bytes
