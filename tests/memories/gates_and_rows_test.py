"""Gates that are shut, single pairs, tokens that are not there and rows beside each other, in float64."""

import jax
import numpy as np
import pytest

from experiments.papers.miras.networks import Network, silu
from jattn.memories.bias import L2
from jattn.memories.learner import Learner
from jattn.memories.retention import KL, Decay
from tests.memories.runs import (
    DEEP,
    GLA,
    LINEAR,
    SHUT,
    TWO_LAYERS,
    B,
    H,
    T,
    assert_near,
    assert_same,
    constant,
    draw,
    memory,
    run,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Gates that are shut, one pair.

NORMED = DEEP['depth 2, norm']
BLIND = Learner(window=3, momentum=True, per_chunk=True)
WAYS = {
    'exact': (LINEAR, 'exact'),
    'dual, matrix': (DEEP['depth 1'], 'dual'),
    'dual, network': (NORMED, 'dual'),
    'generic, network': (NORMED, 'generic'),
    'diagonal': (GLA, 'diagonal_plus_low_rank'),
    'memora': (memory(TWO_LAYERS, L2(), KL(), chunk=4), 'dual'),
    'blind': (memory(TWO_LAYERS, retention=Decay(), learner=BLIND, chunk=4), 'chunk_blind'),
}
TITANS = ('exact', 'dual, matrix', 'dual, network', 'generic, network')


def over(*names):
    """A way's tests share its program."""
    params = [pytest.param(*WAYS[name], marks=pytest.mark.xdist_group(name), id=name) for name in names]
    return pytest.mark.parametrize(('cfg', 'path'), params)


@over(*TITANS)
def test_without_steps_the_reads_are_those_of_the_fading_start(cfg, path):
    told, initial, slow = draw(cfg)
    (y, weights, momentum), _ = run(cfg, path, constant(told, step=0), initial, slow)
    kept = np.exp(np.cumsum(told.log_decay, axis=1))
    for row, head in np.ndindex(B, H):
        start, own = jax.tree.map(lambda x: x[head], (initial, slow))  # noqa: B023
        for t in range(T):
            w = [kept[row, t, head] * x for x in start]
            x = told.q[row, t, head]
            expected = w[0] @ x if len(w) == 1 else Network(silu).answer(w, x, own)
            assert_near(y[row, t, head], expected)
        assert_near([x[row, head] for x in weights], w)
    assert not any(np.any(s) for s in momentum)


@over(*TITANS)
def test_with_nothing_kept_the_weights_are_the_momentum(cfg, path):
    told, initial, slow = draw(cfg)
    (_, weights, momentum), _ = run(cfg, path, constant(told, log_decay=SHUT), initial, slow)
    assert all(np.any(s) for s in momentum)
    assert_near(weights, momentum, 1e-15)


@over('exact', 'dual, matrix')
def test_one_step_of_1_on_a_unit_key_recalls_its_pair_exactly(cfg, path):
    """Also in a document that ends before its first chunk does."""
    told, initial, slow = draw(cfg)
    told = constant(told, step=0, log_decay=0, log_momentum=SHUT)
    told.step[:, 0] = 1
    told = told.replace(q=np.repeat(told.k[:, :1], T, axis=1))
    (y, (weights,), _), _ = run(cfg, path, told, initial, slow, [[1] * T, [1] * 2 + [0] * (T - 2)])
    assert_near(y[0], np.repeat(told.v[0, :1], T, axis=0), 1e-15)
    assert_near(y[1, :2], np.repeat(told.v[1, :1], 2, axis=0), 1e-15)
    assert_near(np.einsum('bhvk,bhk->bhv', weights, told.k[:, 0]), told.v[:, 0], 1e-15)


# Tokens that are not there, rows beside each other.


@over(*WAYS)
def test_tokens_that_are_not_there_leave_the_state_bit_identical(cfg, path):
    told, initial, slow = draw(cfg)
    segments = np.array([[1] * 6 + [0] * 3, [0] * 2 + [1] * 3 + [0] * 4])
    found, state = run(cfg, path, told, initial, slow, segments)
    loud = jax.tree.map(lambda x: np.where((segments > 0).reshape(B, T, *[1] * (x.ndim - 2)), x, 7 * x), told)
    assert_same(run(cfg, path, loud, initial, slow, segments), (found, state))
    (y, *held), after = run(cfg, path, told, initial, slow, 0 * segments, state)
    assert not np.any(y)
    assert_same((held, after), (list(found[1:]), state))


@over(*WAYS)
def test_rows_do_not_feel_each_other(cfg, path):
    told, initial, slow = draw(cfg)
    moved = jax.tree.map(lambda x: np.concatenate([0.9 * x[:1], x[1:]]), told)
    found, other = (run(cfg, path, tokens, initial, slow) for tokens in (told, moved))
    assert_same(*(jax.tree.map(lambda x: x[1], tree) for tree in (found, other)))
    assert np.any(found[0][0][0] != other[0][0][0])


def test_a_token_of_step_0_that_keeps_all_is_no_identity_beside_momentum():
    """The momentum still moves the weights: a token that is not there needs more than theta = 0, a = m = 1."""
    told, initial, slow = draw(LINEAR)
    for gate in (told.step, told.log_decay, told.log_momentum):
        gate[:, -1] = 0
    (_, (without,), _), _ = run(LINEAR, 'exact', told, initial, slow, [[1] * (T - 1) + [0]] * B)
    (_, (weights,), (momentum,)), _ = run(LINEAR, 'exact', told, initial, slow)
    assert_near(weights - without, momentum)
