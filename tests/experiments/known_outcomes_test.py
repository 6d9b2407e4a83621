"""What is known to come out where small models learn a testbed, trained here with stated seeds; minutes in all.

Two reads are tested beside their claim (`papers/re_reading_claims_test.py`), and that a claim alone says nothing of its
truth in `tests/testbeds/facts_and_fibs_test.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.papers import small_models
from experiments.papers.small_models import Setting
from jattn.memories import MEMORIES
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall, Boolean, StateTracking, constructions
from jattn.training.optimizer import AdamWConfig

pytestmark = pytest.mark.slow
CONVOLVED = SoftmaxConfig(heads=1, convolution=3)


def memory(name, **gates):
    member = MEMORIES[name]
    return dataclasses.replace(member, heads=1, tile=16, gates=dataclasses.replace(member.gates, **gates))


def learned(mixer, task, steps, seed=0, test=None, width=64):
    """The metrics, on new rows, of a decoder of two layers without feed-forward that was trained on a task."""
    setting = Setting(
        model=DecoderConfig(width=width, layers=2, mixer=(mixer,), feed_forward=None, remat='none'),
        data=task,
        steps=steps,
        batch=64,
        optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=50),
    )
    variables, _ = small_models.train(setting, jax.random.key(seed))
    return small_models.score(setting, variables, test or task, rows=256, batches=4, key=jax.random.key(1000))


RECALL = AssociativeRecall(vocabulary=128, tokens=64, pairs=8)


@pytest.mark.parametrize('seed', [0, 1])
def test_attention_with_a_short_convolution_recalls_within_500_steps(seed):
    assert learned(CONVOLVED, RECALL, 500, seed)['accuracy'] > 0.99


def test_linear_attention_does_not_recall_and_the_delta_rule_does():
    assert learned(memory('linear_attention'), RECALL, 500)['accuracy'] < 0.8
    assert learned(memory('deltanet'), RECALL, 500)['accuracy'] >= 0.95


def test_overwritten_pairs_tell_the_delta_rule_from_adding():
    task = dataclasses.replace(RECALL, overwrites=4)
    delta, adding = (learned(memory(name), task, 1000) for name in ('deltanet', 'linear_attention'))
    assert delta['updated_accuracy'] > 0.9 and adding['updated_accuracy'] < 0.5


def test_parity_of_longer_rows_needs_negative_eigenvalues():
    task, longer = (StateTracking(language='parity', tokens=tokens) for tokens in (16, 64))
    member = MEMORIES['deltanet']
    wide = dataclasses.replace(member.gates.step, bound=2.0)
    found = [learned(memory('deltanet', step=step), task, 600, test=longer) for step in (wide, member.gates.step)]
    assert found[0]['accuracy'] > 0.9 and found[1]['accuracy'] < 0.75


def test_a_trained_layer_of_linear_attention_is_one_step_of_gradient_descent():
    """Within 2% of the least risk of one step (von Oswald et al. 2022)."""
    dim, examples, halves = 10, 10, constructions.uniform_moments(0.5)

    def loss(weights, key):
        x_key, w_key = jax.random.split(key)
        x = jax.random.uniform(x_key, (2048, examples + 1, dim), minval=-0.5, maxval=0.5)
        y = jnp.einsum('bsf,bf->bs', x, jax.random.normal(w_key, (2048, dim)))
        tokens = constructions.join(x[:, :-1], y[:, :-1], x[:, -1])
        said = constructions.read_out(constructions.attend(weights, tokens))
        return jnp.mean(jnp.square(said - y[:, -1]))

    start = constructions.LinearAttention(*0.1 * jax.random.normal(jax.random.key(0), (4, dim + 1, dim + 1)))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 4000))

    @jax.jit
    def train(weights):
        def step(carry, key):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights, key), state)
            return (optax.apply_updates(weights, updates), state), None

        keys = jax.random.split(jax.random.key(1), 4000)
        return jax.lax.scan(step, (weights, optimizer.init(weights)), keys)[0][0]

    fitted = train(start)
    risk = jnp.mean(jnp.stack([loss(fitted, key) for key in jax.random.split(jax.random.key(2), 50)]))
    step = constructions.best_step(halves, dim, examples)
    assert abs(risk / constructions.descent_risk(halves, dim, examples, step) - 1) < 0.02


def test_sparse_parity_stays_between_a_coin_and_what_the_point_alone_says():
    """At n = 10 the number of coordinates that are on tells the parity of an unknown pair with .5547."""
    found = learned(SoftmaxConfig(heads=2), Boolean(function='sparse_parity', inputs=10, points=24), 500, width=32)
    assert 0.48 < found['accuracy'] < 0.5547 + 0.02


def test_what_stands_behind_a_teaching_sequence_is_known():
    task = Boolean(function='conjunction', inputs=6, points=16, teaching=1.0)
    by_point = learned(memory('deltanet'), task, 1000)['accuracy_by_point']
    assert len(by_point) == 16 and min(by_point[task.inputs + 2 :]) > 0.98
