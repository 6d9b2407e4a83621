"""Longhorn, the exact implicit step and the published diagonal one, on both paths, in float64."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.memories import MEMORIES
from jattn.memories.gates import Gate, Gates
from jattn.memories.learner import Learner, implicit_step
from jattn.memories.retention import Decay
from tests.memories.drawn import assert_near, drawn, memory, read
from tests.memories.published import B, H, K, T, apply, inputs, parameters


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def longhorn(k, v, step, decay=1.0, error='raw'):
    """All states [B, T, H, V, K]: S[c,n] <- (1 - d_c k_n^2) S[c,n] + d_c x_c k_n, d_c = beta_c / (1 + beta_c k.k)."""
    state, states = np.zeros((B, H, K, K)), []
    decay = np.broadcast_to(decay, (B, T, H, K))[..., None, :]
    step = np.broadcast_to(step, (B, T, H, K))
    for t in range(T):
        d = (step[:, t] / (1 + step[:, t] * np.sum(k[:, t] ** 2, axis=-1, keepdims=True)))[..., None]
        forgotten = d * k[:, t, :, None] ** 2
        kept = decay[:, t] - forgotten if error == 'raw' else decay[:, t] * (1 - forgotten)
        state = kept * state + d * v[:, t, ..., None] * k[:, t, :, None]
        states.append(state)
    return np.stack(states, axis=1)


def diagonal(error='raw', retention=None, **gates):
    """A diagonal memory; as published without further choices."""
    learner = Learner(solver='implicit', diagonal=True, error=error)
    gates = Gates(**({'step': Gate(per='channel')} | gates))
    return memory('longhorn', learner=learner, retention=retention or MEMORIES['longhorn'].retention, gates=gates)


DIAGONAL = {
    'as published': diagonal(),
    'a step per head': diagonal(step=Gate()),
    'a decay per channel, raw': diagonal(retention=Decay(), decay=Gate(per='channel')),
    'a decay, decayed': diagonal('decayed', Decay(), step=Gate(), decay=Gate()),
}
PUBLISHED = DIAGONAL['as published']


def diagonal_tokens(cfg):
    gates = cfg.gates
    channels = [(K,) if gate is not None and gate.per == 'channel' else () for gate in (gates.step, gates.decay)]
    tokens = drawn(5, *channels)
    tokens = tokens.replace(k=2 * tokens.k)
    return tokens if gates.decay is not None else tokens.replace(log_decay=None)


@pytest.mark.parametrize('name', DIAGONAL)
def test_the_diagonal_step_is_the_published_recurrence_on_both_paths(name):
    cfg = DIAGONAL[name]
    assert cfg.running_path == 'diagonal'
    tokens = diagonal_tokens(cfg)
    step = tokens.step if tokens.step.ndim == 4 else tokens.step[..., None]
    decay = 1.0 if tokens.log_decay is None else np.exp(tokens.log_decay)
    decay = decay[..., None] if np.ndim(decay) == 3 else decay
    states = longhorn(tokens.k, tokens.v, step, decay, cfg.learner.error)
    for path in ('diagonal', 'generic'):
        assert_near(read(cfg, path, tokens), np.einsum('bthvk,bthk->bthv', states, tokens.q))


def test_the_gradients_of_the_diagonal_path_are_those_of_the_token_by_token_path():
    cfg = DIAGONAL['a decay per channel, raw']
    weights = np.random.default_rng(6).normal(size=(B, T, H, K))
    ours, oracle = (
        jax.jit(jax.grad(lambda tokens, path=path: jnp.sum(weights * read(cfg, path, tokens))))(diagonal_tokens(cfg))
        for path in ('diagonal', 'generic')
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert_near(a, b, 1e-9)


def test_documents_of_a_diagonal_memory_know_nothing_of_each_other():
    cfg, segments = PUBLISHED, jnp.array([[4] * 3 + [0] * 2 + [5] * 6, [1] * 8 + [2] * 3], jnp.int32)
    tokens = diagonal_tokens(cfg)
    hidden = jax.tree.map(lambda x: np.where((segments == 0).reshape(B, T, *[1] * (x.ndim - 2)), np.nan, x), tokens)
    packed = read(cfg, 'diagonal', hidden, segments=segments)
    for row, first, last in ((0, 0, 3), (0, 5, 11), (1, 0, 8), (1, 8, 11)):
        alone = jax.tree.map(lambda x: jnp.roll(x, -first, axis=1), tokens)  # noqa: B023
        assert_near(packed[row, first:last], read(cfg, 'diagonal', alone)[row, : last - first])
    assert not np.any(packed[0, 3:5])


def test_a_diagonal_layer_may_be_called_in_parts():
    cfg = PUBLISHED
    p, x = parameters(cfg), inputs()
    state = cfg.init_state(B, T, jnp.float64)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
    run = jax.jit(lambda x, state: cfg.make().apply({'params': p}, x, Context(), state))
    outputs = []
    for start, end in itertools.pairwise((0, 5, 6, 11)):
        y, state = run(x[:, start:end], state)
        outputs.append(y)
    assert_near(np.concatenate(outputs, axis=1), apply(cfg, p, x))


def test_the_exact_step_minimises_its_objective_and_equals_the_diagonal_one_where_keys_do_not_meet():
    s = drawn(7)
    before, k, v = np.random.default_rng(8).normal(size=(K, K)), 2 * s.k[0, 0, 0], s.v[0, 0, 0]
    beta = s.step[0, 0, 0]
    d = implicit_step(jnp.asarray(beta), jnp.asarray(k))
    after = before + d * np.outer(v - before @ k, k)
    np.testing.assert_allclose(after - before - beta * np.outer(v - after @ k, k), 0, atol=1e-12)
    one_hot = s.replace(k=2 * np.eye(K)[np.random.default_rng(9).integers(K, size=(B, T, H))], log_decay=None)
    exact = read(memory('longhorn'), 'exact', one_hot)
    assert_near(read(DIAGONAL['a step per head'], 'diagonal', one_hot), exact)
    other = s.replace(log_decay=None)
    apart = read(DIAGONAL['a step per head'], 'diagonal', other) - read(memory('longhorn'), 'exact', other)
    assert np.max(np.abs(apart)) > 0.1


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Learner(diagonal=True), "learner.diagonal=True is a form of solver='implicit'"),
        (lambda: memory('longhorn', gates=Gates(step=Gate(per='channel'))), "solver='implicit' takes a step per head"),
        (lambda: dataclasses.replace(PUBLISHED, path='exact'), 'diagonal of k k^T'),
        (lambda: dataclasses.replace(PUBLISHED, path='diagonal', learned_start=True), 'starts at zero'),
        (lambda: Gate(kind='complement', lower=1.0), 'gate.lower=1.0 must be at least 0 and below 1'),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
