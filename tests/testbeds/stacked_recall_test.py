"""Stacked recall: layout, the exact memory, the interference of the sum, overwrites told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.stacked_recall import StackedRecall, delta_memory
from tests.testbeds.draws import draw

TASKS = {
    'random': StackedRecall(dim=8, pairs=6),
    'overwrites': StackedRecall(dim=8, pairs=6, overwrites=2),
    'one_hot': StackedRecall(dim=8, pairs=6, overwrites=2, keys='one_hot'),
    'many': StackedRecall(dim=8, pairs=24),
}
ROWS = 1000
score = jax.jit(
    lambda task, batch: {name: (task.metrics(said, batch), said) for name, said in task.baselines(batch).items()},
    static_argnums=0,
)


@pytest.fixture(scope='module')
def scored():
    batches = {name: draw(task, jax.random.key(0), ROWS) for name, task in TASKS.items()}
    return {name: (batch, score(TASKS[name], batch)) for name, batch in batches.items()}


def value(scores, baseline, metric='accuracy'):
    return float(scores[baseline][0][metric].value())


@pytest.mark.parametrize('name', TASKS)
def test_a_question_is_a_shown_key_without_value_and_its_answer_the_last_value(name, scored):
    task, batch = TASKS[name], jax.tree.map(np.asarray, scored[name][0])
    keys, values = np.split(batch.inputs[:50], 2, axis=-1)
    context = task.context
    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(values[:, :context], axis=-1), 1, atol=1e-5)
    assert np.all(values[:, context:] == 0) and np.all(batch.targets[:, :context] == 0)
    np.testing.assert_array_equal(batch.mask, np.tile(np.arange(context + task.pairs) >= context, (ROWS, 1)))
    for row in range(50):
        book = {}
        for key, shown in zip(keys[row, :context], values[row]):
            book.setdefault(key.tobytes(), []).append(shown)
        assert len(book) == task.pairs and len({key.tobytes() for key in keys[row, context:]}) == task.pairs
        for key, target, updated in zip(keys[row, context:], batch.targets[row, context:], batch.meta['updated'][row]):
            np.testing.assert_array_equal(book[key.tobytes()][-1], target)
            assert len(book[key.tobytes()]) == 1 + updated
        assert batch.meta['updated'][row].sum() == task.overwrites


@pytest.mark.parametrize('name', TASKS)
def test_the_look_up_is_exact_for_any_keys(name, scored):
    scores = scored[name][1]
    assert value(scores, 'look_up') == value(scores, 'look_up', 'sequence_accuracy') == 1
    assert value(scores, 'look_up', 'loss') == pytest.approx(TASKS[name].facts()['look_up'], abs=1e-10)
    assert value(scores, 'zero', 'loss') == pytest.approx(TASKS[name].facts()['zero'], rel=1e-5)


def test_the_delta_rule_is_exact_for_one_hot_keys_and_not_for_random_ones(scored):
    assert value(scored['one_hot'][1], 'delta_rule') == 1
    assert TASKS['one_hot'].facts()['delta_rule'] == 0
    assert value(scored['one_hot'][1], 'delta_rule', 'loss') == pytest.approx(0, abs=1e-10)
    assert 'delta_rule' not in TASKS['many'].facts()
    assert value(scored['many'][1], 'delta_rule') < value(scored['many'][1], 'sum')
    batch, scores = scored['many']
    error = np.sum((np.asarray(scores['delta_rule'][1]) - np.asarray(batch.targets)) ** 2, axis=-1)
    is_last = np.all(np.asarray(batch.inputs[:, 23:24, :8] == batch.inputs[:, :, :8]), axis=-1) & (np.arange(48) >= 24)
    assert is_last.sum() == ROWS and error[is_last].max() < 1e-8 < 0.1 < error[:, 24:][~is_last[:, 24:]].mean()


@pytest.mark.parametrize('name', TASKS)
def test_the_sums_squared_error_is_the_interference(name, scored):
    batch, scores = scored[name]
    error = np.sum((np.asarray(scores['sum'][1]) - np.asarray(batch.targets)) ** 2, axis=-1, dtype=np.float64)
    rows = error.sum(axis=1) / TASKS[name].pairs  # rows are independent, the questions of a row are not
    assert rows.mean() == pytest.approx(TASKS[name].facts()['sum'], abs=4.5 * rows.std() / ROWS**0.5 + 1e-6)


def test_the_sum_degrades_once_there_are_more_keys_than_features(scored):
    few = draw(StackedRecall(dim=64, pairs=6), jax.random.key(1), 200)
    assert value(score(StackedRecall(dim=64, pairs=6), few), 'sum') > 0.999
    assert value(scored['many'][1], 'sum') < 0.75 < 0.85 < value(scored['random'][1], 'sum')
    assert TASKS['many'].facts()['sum'] == 23 / 8 and StackedRecall(dim=8, pairs=9).facts()['sum'] == 1
    assert value(scored['random'][1], 'sum', 'loss') < 1 < value(scored['many'][1], 'sum', 'loss')


def test_overwritten_keys_tell_the_delta_rule_from_the_sum(scored):
    scores = scored['one_hot'][1]
    assert value(scores, 'delta_rule', 'updated_accuracy') == value(scores, 'sum', 'untouched_accuracy') == 1
    # Old and new value are read with one weight: half of the answers, decided by rounding.
    assert value(scores, 'sum', 'updated_accuracy') < 0.7
    assert float(scores['sum'][0]['updated_accuracy'].count) == 2 * ROWS


def test_a_guess_of_a_shown_value_is_right_by_chance(scored):
    task, batch = TASKS['overwrites'], scored['overwrites'][0]
    guess = np.random.default_rng(0).integers(0, task.context, (ROWS, task.pairs))
    rows = (guess == np.asarray(batch.meta['answers'])).mean(axis=1)
    assert rows.mean() == pytest.approx(task.facts()['chance_accuracy'], abs=4.5 * rows.std() / ROWS**0.5)


def test_the_memory_equals_its_loop():
    rng = np.random.default_rng(0)
    keys, values = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 5, 4)).astype(np.float32)
    expected = np.zeros((2, 3, 4))
    for b in range(2):
        for k, v in zip(keys[b], values[b]):
            expected[b] += np.outer(k, v - k @ expected[b])
    np.testing.assert_allclose(delta_memory(jnp.asarray(keys), jnp.asarray(values)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['overwrites', 'one_hot'])
def test_same_key_same_batch_under_jit_and_vmap(name):
    task, keys = TASKS[name], jax.random.split(jax.random.key(4), 2)
    rows = jax.jit(jax.vmap(lambda key: task.sample(key, 3)))(keys)
    expected = draw(task, keys[1], 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-6), rows, expected)
    np.testing.assert_array_equal(rows.meta['answers'][1], expected.meta['answers'])
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(pairs=0), 'dim=32 and pairs=0 must be at least 1'),
        (dict(overwrites=17), r'overwrites=17 must lie in 0\.\.pairs = 16'),
        (dict(keys='some'), "keys='some' must be one of random, one_hot"),
        (dict(keys='one_hot', pairs=33), 'pairs=33 must be at most dim=32'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        StackedRecall(**fields)
