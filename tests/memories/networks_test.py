"""What equals what among memories that are networks, and every loss with every retention, in float64."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.memories.architecture import Matrix
from jattn.memories.bias import BIASES, L2, LP, Bias, Huber
from jattn.memories.learner import Learner, implicit_step
from jattn.memories.norms import row_direction, row_norm
from jattn.memories.retention import KL, RETENTIONS, Decay, Lq, Retention
from jattn.ops import attention
from jattn.ops.fast_weights import dual
from tests.memories.runs import RAGGED, TWO_LAYERS, H, assert_near, constant, corrected, draw, memory, push, reads


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# What equals what among networks.

L2_NETWORK, HUBER_NETWORK = (memory(TWO_LAYERS, bias, Decay(), chunk=4) for bias in (L2(), Huber()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction(Bias):
    """The norm of the error: its gradient is the error's direction."""

    def loss(self, prediction, value, threshold=None):
        return row_norm(prediction - value)[:, 0]

    def gradient(self, prediction, value, threshold=None):
        return row_direction(prediction - value)


def same_reads(one, other):
    """Two memories, each with its tokens and its start."""
    assert_near(*(reads(cfg, 'dual', *inputs) for cfg, *inputs in (one, other)))


def test_a_network_with_l2_is_ttt_without_its_average():
    plain = memory(TWO_LAYERS, chunk=16)
    averaged = dataclasses.replace(plain, learner=Learner(averaged=True))
    told, initial, slow = draw(plain, RAGGED)
    offsets = np.repeat(1 - 1 / np.arange(1.0, 17)[None], H, axis=0)
    same_reads((plain, told, initial, slow), (averaged, told, initial, slow | {'offsets': offsets}))


def test_moneta_of_p_2_without_a_norm_is_l2_at_half_the_step():
    moneta = memory(TWO_LAYERS, LP(p=2.0), Lq(form='none'), chunk=4)
    told, initial, slow = draw(L2_NETWORK)
    half = told.replace(step=told.step / 2)
    same_reads((moneta, half, initial, slow), (L2_NETWORK, told, initial, slow))


def test_moneta_of_q_2_is_decay_from_a_start_of_norm_1():
    moneta = memory(TWO_LAYERS, L2(), Lq(q=2.0), chunk=4)
    told, initial, slow = draw(moneta)
    unit = tuple(w / np.linalg.norm(w, axis=(1, 2), keepdims=True) for w in initial)
    same_reads((moneta, told, initial, slow), (L2_NETWORK, told, unit, slow))


def test_yaad_of_an_infinite_delta_is_l2_and_of_a_vanishing_one_the_model_of_normalised_errors():
    told, initial, slow = draw(HUBER_NETWORK)
    plain, delta = told.replace(threshold=None), 1e-9
    vanishing = constant(told, threshold=delta).replace(step=told.step / delta)
    normalised = dataclasses.replace(L2_NETWORK, bias=Direction())
    for tokens, cfg in ((constant(told, threshold=np.inf), L2_NETWORK), (vanishing, normalised)):
        same_reads((HUBER_NETWORK, tokens, initial, slow), (cfg, plain, initial, slow))


# Two rows of Table 1 as minimisers.


def test_longhorns_step_minimises_its_implicit_objective():
    """norm(S - W)^2 + theta norm(S k - v)^2 has no slope there."""
    rng = np.random.default_rng(0)
    w, k, v, theta = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=3), 0.7
    strength = float(implicit_step(np.full((1, 1, 1), theta), k.reshape(1, 1, 1, 4))[0, 0, 0])
    s = corrected(w, k, v, strength, 1)
    np.testing.assert_allclose((s - w) + theta * np.outer(s @ k - v, k), 0, atol=1e-14)


def test_softmax_attention_minimises_the_errors_weighed_by_its_kernel():
    """sum_i exp(q.k_i) norm(y - v_i)^2 has no slope at its outputs y."""
    told, _, _ = draw(memory())
    read = jax.jit(functools.partial(attention, causal=True, scale=1.0, implementation='reference'))
    y = read(told.q, told.k, told.v)
    kernel = np.tril(np.exp(np.einsum('bthk,bshk->bhts', told.q, told.k)))
    slope = np.einsum('bhts,bthv->bthv', kernel, y) - np.einsum('bhts,bshv->bthv', kernel, told.v)
    np.testing.assert_allclose(slope, 0, atol=1e-12)


# Every loss with every retention: a row of the batch has a loss, a head a retention.

LOSSES = [bias for bias in BIASES.values() if not bias.erases]
KEEPS = list(RETENTIONS.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyBias(Bias):
    """The loss whose number stands in the tens of the threshold."""

    needs_threshold: ClassVar[bool] = True

    def loss(self, prediction, value, threshold=None):
        return self._own('loss', prediction, value, threshold)

    def gradient(self, prediction, value, threshold=None):
        return self._own('gradient', prediction, value, threshold)

    def _own(self, what, prediction, value, threshold):
        number = jnp.floor(threshold / 10)
        found = [getattr(bias, what)(prediction, value, threshold - 10 * number) for bias in LOSSES]
        own = lambda n, x: jnp.where((number == n).reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        return sum(own(n, x) for n, x in enumerate(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyRetention(Retention):
    """The retention whose number is the slow parameter; to the others all anchors are ones, where they are finite."""

    def accumulator(self, initial, slow):
        return self._own(slow, initial, lambda keep, initial: keep.accumulator(initial, slow))

    def weights(self, anchor, initial, slow):
        return self._own(slow, anchor, lambda keep, anchor: keep.weights(anchor, initial, slow))

    def parts(self, anchor, initial, slow):
        zeros, ones = (tuple(f(w) for w in initial) for f in (jnp.zeros_like, lambda w: jnp.ones((), w.dtype)))

        def full(keep, anchor):
            parts = keep.parts(anchor, initial, slow)
            return dual.Parts(parts.fixed or zeros, parts.fading or zeros, parts.slope or ones)

        return self._own(slow, anchor, full)

    def settle(self, anchor, kept, change, initial, slow, tokens):
        return self._own(slow, anchor, lambda keep, anchor: keep.settle(anchor, kept, change, initial, slow, tokens))

    def slow(self, shapes):
        return {'number': ((), 0.0)} | KL().slow(shapes)

    def _own(self, slow, anchor, of):
        found = None
        for n, keep in enumerate(KEEPS):
            pick = functools.partial(jnp.where, slow['number'] == n)
            result = of(keep, jax.tree.map(lambda a: pick(a, 1), anchor))  # noqa: B023
            found = result if found is None else jax.tree.map(pick, result, found)
        return found


def test_the_dual_path_equals_the_token_loop_for_every_loss_with_every_retention():
    cfg = memory(Matrix(), AnyBias(), AnyRetention(), heads=len(KEEPS), chunk=4)

    def inputs(seed, chosen):
        told, initial, slow = draw(cfg, batch=len(LOSSES), seed=seed)
        told.threshold[...] += 10.0 * chosen * np.arange(len(LOSSES))[:, None, None]
        told.log_decay[...] *= np.array([keep.decays for keep in KEEPS])
        return told, initial, slow | {'number': chosen * np.arange(len(KEEPS), dtype=float)}

    found, expected = (push(cfg, path, inputs(0, 1), inputs(1, 0)) for path in ('dual', 'generic'))
    for ours, truth in zip(found, expected):  # values, then derivatives: the outputs of a pair by their own size
        ours, truth = np.asarray(ours), np.asarray(truth)
        size = np.abs(truth).max(axis=(1, 3), keepdims=True)
        assert np.all(size > 0) and np.all(np.abs(ours - truth) < 1e-10 * size)
