"""Boolean functions in context: exact balances and baselines, teaching sequences, layout, scores."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.boolean import Boolean, random_signs
from jattn.testbeds.boolean_functions import FUNCTIONS, NearestNeighbours
from jattn.testbeds.points import split_points
from jattn.testbeds.task import Batch
from tests.testbeds import draws
from tests.testbeds.draws import assert_one_key_is_one_batch, draw

ROWS = 2500
TAUGHT = ['conjunction', 'monotone_conjunction', 'monotone_dnf', 'parity']

# Only what is asked for is computed.
answer = jax.jit(lambda task, batch, learner: task.baselines(batch)[learner], static_argnums=(0, 2))
score = jax.jit(lambda task, outputs, batch: task.metrics(outputs, batch), static_argnums=0)


@functools.cache
def drawn(task, rows=ROWS):
    """The batch, its points and its labels, as numpy arrays."""
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(0), rows))
    return (batch, *split_points(batch.inputs))


@functools.cache
def answers(task, learner, rows=ROWS):
    """What a baseline says of the points of that batch."""
    return np.asarray(answer(task, drawn(task, rows)[0], learner))[:, ::2, 0]


within = functools.partial(draws.within, errors=4)


BALANCE = {
    'conjunction': 0.30739,
    'disjunction': 0.69261,
    'sparse_disjunction': 0.65625,
    'dnf': 0.44681,
    'cnf': 0.59575,
    'threshold': 0.5,
    'int_halfspace': 0.48126,
    'majority': 0.43105,
    'parity': 0.5,
    'sparse_parity': 0.5,
}


@pytest.mark.parametrize('name', BALANCE)
def test_the_balance_is_that_of_the_closed_form(name):
    assert Boolean(function=name, inputs=28).facts()['positive'] == pytest.approx(BALANCE[name], abs=6e-6)


def test_the_balance_at_ten_inputs_is_that_of_the_closed_form():
    assert Boolean().facts()['positive'] == pytest.approx(0.43781, abs=6e-6)
    assert Boolean(function='parity').facts()['positive'] == (1 - 2**-10) / 2


@pytest.mark.parametrize('name', FUNCTIONS)
def test_labels_are_balanced_as_the_facts_say(name):
    task = Boolean(function=name)
    assert within(np.mean(drawn(task)[2] > 0, axis=1), task.facts()['positive'])
    noisy = dataclasses.replace(task, label_noise=0.2)
    assert noisy.facts()['positive'] == pytest.approx(0.2 + 0.6 * task.facts()['positive'])


@pytest.mark.parametrize('name', TAUGHT)
def test_points_behind_teaching_sequences_are_balanced_as_the_facts_say(name):
    task = Boolean(function=name, teaching=0.5)
    behind = drawn(task)[2][:, task.family.longest_block(10) :]
    assert within(np.mean(behind > 0, axis=1), task.facts()['positive'])


def test_taught_classes_are_forced_as_often_as_the_authors_teaching_tasks():
    taught = {name: Boolean(function=name, teaching=0.5).facts()['positive'] for name in TAUGHT}
    assert taught['conjunction'] == pytest.approx(0.4 + 0.6 * 0.85**10)
    assert taught['monotone_conjunction'] == pytest.approx(0.4 + 0.6 * 0.85**10)
    # The clauses of one row see the same point: with o coordinates off, each is true with .8^o.
    off = np.array([bin(point).count('1') for point in range(1024)])
    assert taught['monotone_dnf'] == pytest.approx(0.35 + 0.65 * np.mean(1 - (1 - 0.8**off) ** 3))


def literal_truths(weights, x):
    return [x[j] == w for j, w in enumerate(weights) if w]


RULES = {
    'conjunction': lambda p, x: all(literal_truths(p['weights'][0], x)),
    'disjunction': lambda p, x: any(literal_truths(p['weights'][0], x)),
    'sparse_disjunction': lambda p, x: any(literal_truths(p['weights'][0], x)),
    'dnf': lambda p, x: any(all(literal_truths(w, x)) for w in p['weights']),
    'cnf': lambda p, x: all(any(literal_truths(w, x)) for w in p['weights']),
    'threshold': lambda p, x: int(p['weights'] @ x) > p['threshold'],
    'int_halfspace': lambda p, x: int(p['weights'] @ x) >= 1,
    'majority': lambda p, x: sum(x[p['weights'] == 1] > 0) > sum(x[p['weights'] == 1] < 0),
    'parity': lambda p, x: sum(x[p['subset'] == 1] > 0) % 2 == 1,
    'sparse_parity': lambda p, x: sum(x[p['subset'] == 1] > 0) == 1,
}


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('inputs', [5])
def test_labels_agree_with_logic_on_the_whole_cube(name, inputs):
    family = FUNCTIONS[name]
    cube = np.array(list(itertools.product([-1.0, 1.0], repeat=inputs)), np.float32)
    params = family.draw(jax.random.key(0), 12, inputs)
    found = family.label(params, jnp.broadcast_to(jnp.asarray(cube), (12, *cube.shape)))
    rows = [dict(zip(params, leaves)) for leaves in zip(*map(np.asarray, params.values()))]
    expected = [[1.0 if RULES[name](row, x) else -1.0 for x in cube] for row in rows]
    np.testing.assert_array_equal(found, expected)


def test_an_empty_and_is_true_and_an_empty_or_false():
    empty, points = {'weights': jnp.zeros((1, 1, 3), jnp.int32)}, jnp.ones((1, 2, 3))
    assert FUNCTIONS['conjunction'].label(empty, points).tolist() == [[1, 1]]
    assert FUNCTIONS['disjunction'].label(empty, points).tolist() == [[-1, -1]]
    one_empty = {'weights': jnp.array([[[1, 0, 0], [1, 0, 0], [0, 0, 0]]])}
    assert FUNCTIONS['dnf'].label(one_empty, -points).tolist() == [[1, 1]]
    assert FUNCTIONS['cnf'].label(one_empty, points).tolist() == [[-1, -1]]


WEIGHTS = {
    'conjunction': {0: 0.7, 1: 0.15, -1: 0.15},
    'disjunction': {0: 0.7, 1: 0.15, -1: 0.15},
    'dnf': {0: 0.8, 1: 0.1, -1: 0.1},
    'cnf': {0: 0.8, 1: 0.1, -1: 0.1},
    'monotone_conjunction': {0: 0.7, 1: 0.3},
    'monotone_dnf': {0: 0.8, 1: 0.2},
    'threshold': {0: 0.7, 1: 0.15, -1: 0.15},
    'int_halfspace': dict.fromkeys(range(-3, 4), 1 / 7),
    'majority': {0: 0.7, 1: 0.3},
}


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights_have_the_published_probabilities(name):
    weights = drawn(Boolean(function=name))[0].meta['weights'].reshape(-1)
    assert set(np.unique(weights)) == set(WEIGHTS[name])
    for value, chance in WEIGHTS[name].items():
        assert within(weights == value, chance)


def test_subsets_and_thresholds_are_uniform():
    sparse = drawn(Boolean(function='sparse_parity'))[0].meta['subset']
    four = drawn(Boolean(function='sparse_disjunction'))[0].meta['weights'][:, 0]
    any_size = drawn(Boolean(function='parity'))[0].meta['subset']
    thresholds = drawn(Boolean(function='threshold'))[0].meta['threshold']
    assert np.all(sparse.sum(axis=1) == 2) and np.all(four.sum(axis=1) == 4)
    for subsets, chance in ((sparse, 0.2), (four, 0.4), (any_size, 0.5)):
        assert all(within(column, chance) for column in subsets.T)
    assert within(any_size[:, 0] & any_size[:, 1], 0.25) and within(sparse[:, 0] & sparse[:, 1], 1 / 45)
    assert all(within(thresholds == value, 1 / 6) for value in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5))


@pytest.mark.parametrize('name, share', [('conjunction', 0.3), ('disjunction', 0.3), ('dnf', 0.35), ('cnf', 0.3)])
def test_one_clause_of_a_row_is_forced_and_free_coordinates_stay_fair(name, share):
    batch, x, _ = drawn(Boolean(function=name))
    all_weights, clause = batch.meta['weights'] * FUNCTIONS[name].sign, batch.meta['clause']
    weights = all_weights[np.arange(ROWS), clause][:, None]
    holds = np.all((x == weights) | (weights == 0), axis=-1)
    literals = np.sum(weights != 0, axis=-1)[:, 0]
    for k in range(3):
        assert within(holds[literals == k].mean(axis=1), share + (1 - share) * 0.5**k)
    free = np.where(weights == 0, x, 0)[holds]
    assert within(free.sum(axis=-1), 0)
    if all_weights.shape[1] == 3:
        other = all_weights[np.arange(ROWS), (clause + 1) % 3][:, None]
        other_holds = np.all((x == other) | (other == 0), axis=-1)
        assert within(other_holds.mean(axis=1), 0.9**10)  # no more often than at uniform inputs
        assert set(np.unique(clause)) == {0, 1, 2}


@pytest.mark.parametrize('size', [(3, 5), (7, 11)])
def test_random_signs_are_fair_and_independent(size):
    signs = np.asarray(random_signs(jax.random.key(0), (ROWS, *size))).reshape(ROWS, -1)
    assert set(np.unique(signs)) == {-1, 1}
    products = signs.T @ signs / np.sqrt(ROWS)
    assert np.abs(signs.mean(axis=0) * np.sqrt(ROWS)).max() < 4.5
    assert np.abs(products[~np.eye(len(products), dtype=bool)]).max() < 4.5


# Accuracy at the last of 70 points, 28 inputs: 1 neighbour, 3 neighbours, averaging. Of an independent simulation, good
# to .01, but for 3 neighbours of disjunction and dnf, where it has .83 and .75: another one, in numpy, gave the figures
# here, and a disjunction must score as a conjunction does, whose mirror image it is.
NEIGHBOURS = {
    'conjunction': (0.834, 0.85, 0.65),
    'disjunction': (0.81, 0.855, None),
    'sparse_disjunction': (0.73, 0.78, None),
    'dnf': (0.73, 0.774, None),
    'cnf': (0.73, 0.76, None),
    'threshold': (0.72, 0.75, 0.72),
    'int_halfspace': (0.65, 0.67, 0.78),
    'majority': (0.66, 0.70, 0.77),
    'parity': (0.50, None, None),
}


@pytest.mark.parametrize('name', NEIGHBOURS)
def test_neighbours_and_averages_are_as_good_as_in_an_independent_simulation(name):
    batch = draw(Boolean(function=name, inputs=28, points=70), jax.random.key(1), 4000)
    x, y = (np.asarray(a) for a in split_points(batch.inputs))
    similar = (x[:, :-1] @ x[:, -1, :, None])[..., 0]
    nearest = np.argsort(-similar, axis=1, kind='stable')[:, :3]
    labels = np.take_along_axis(y, nearest, axis=1)
    votes = (labels[:, 0], labels.sum(axis=1), np.sum(similar * y[:, :-1], axis=1))
    learners = ('nearest_neighbour', 'three_neighbours', 'averaging')
    solved = neighbour_answers(batch.inputs[:50])
    for learner, vote, known in zip(learners, votes, NEIGHBOURS[name]):
        np.testing.assert_array_equal(solved[learner], vote[:50])
        if known is not None:
            error = np.sqrt(known * (1 - known) / 4000)
            assert abs(np.mean(np.sign(vote) == y[:, -1]) - known) < 0.01 + 3 * error, learner


@jax.jit
def neighbour_answers(inputs):
    """What the baselines of every class say of the last point."""
    batch = Batch(inputs, inputs, inputs[:, :, 0])
    found = Boolean(function='dnf', inputs=28, points=70).baselines(batch)
    return {learner: logits[:, -2, 0] for learner, logits in found.items()}


EXACT = {
    'conjunction': 'elimination',
    'disjunction': 'elimination',
    'sparse_disjunction': 'elimination',
    'monotone_conjunction': 'elimination',
    'parity': 'gaussian_elimination',
    'nearest_neighbours': 'nearest_neighbour',
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_exact_learners_score_what_the_facts_say(name):
    task = Boolean(function=name)
    facts = task.facts()
    if name not in EXACT:
        assert not any(learner in fact for fact in facts for learner in EXACT.values())
        return
    learner, y = EXACT[name], drawn(task)[2]
    right = (np.sign(answers(task, learner)) == y)[:, task.family.unscored :]
    assert within(right.mean(axis=1), facts[f'{learner}_accuracy'])
    assert (name == 'nearest_neighbours') != (f'{learner}_last_accuracy' in facts)
    by_point = {'39': facts.get(f'{learner}_last_accuracy', 1.0)}
    by_point |= {fact.rpartition('_at_')[2]: value for fact, value in facts.items() if '_at_' in fact}
    assert len(by_point) == (6 if name == 'parity' else 1)
    for point, expected in by_point.items():
        error = np.sqrt(expected * (1 - expected) / ROWS)
        assert abs(right[:, int(point) - 40].mean() - expected) <= 4 * error


def test_the_loss_of_gaussian_elimination_is_that_of_coins_where_nothing_follows():
    task = Boolean(function='parity')
    batch = drawn(task)[0]
    loss = score(task, answer(task, batch, 'gaussian_elimination'), batch)['loss'].value()
    assert float(loss) == pytest.approx(task.facts()['gaussian_elimination_loss'], abs=0.002)


@pytest.mark.parametrize('name', ['conjunction', 'monotone_conjunction', 'disjunction', 'sparse_disjunction'])
def test_elimination_never_says_true_of_an_and_that_is_false_nor_false_of_an_or_that_is_true(name):
    task = Boolean(function=name)
    sign = task.family.sign
    says, y = sign * answers(task, 'elimination'), sign * drawn(task)[2]
    assert not np.any((says > 0) & (y < 0)) and np.any((says > 0) & (y > 0)) and np.any((says < 0) & (y > 0))


def test_sparse_parity_has_the_known_bayes_curve():
    task = Boolean(function='sparse_parity')
    right = np.sign(answers(task, 'bayes')) == drawn(task)[2]
    assert task.facts()['bayes_accuracy_at_0'] == pytest.approx(0.56, abs=0.01)
    assert within(right[:, 0], task.facts()['bayes_accuracy_at_0'])
    for i, known in {0: 0.56, 2: 0.61, 4: 0.72, 6: 0.87, 8: 0.96, 10: 0.99}.items():
        error = np.sqrt(known * (1 - known) / ROWS)
        assert abs(right[:, i].mean() - known) < 0.005 + 3 * error


@pytest.mark.parametrize('name', ['sparse_parity', 'sparse_disjunction', 'monotone_conjunction', 'majority'])
def test_bayes_is_right_as_often_as_it_says(name):
    task = Boolean(function=name, inputs=6, points=12)
    odds, y = answers(task, 'bayes').astype(np.float64), drawn(task)[2]
    sure = 1 / (1 + np.exp(-np.abs(odds)))
    for i in range(12):
        assert within((np.sign(odds) == y)[:, i] - sure[:, i], 0, errors=4.5)


def taught_block(name, params, inputs):
    """The teaching sequence of one row, written down from the definition."""
    if name == 'parity':
        return [[1 if j == i else -1 for j in range(inputs)] for i in range(inputs)]
    block = []
    for weights in params['weights']:
        true = [int(w) if w else -1 for w in weights]
        block.append(true)
        if name == 'conjunction':
            block.append([int(w) if w else 1 for w in weights])
        for j in [*np.flatnonzero(weights > 0), *np.flatnonzero(weights < 0)]:
            block.append([-v if i == j else v for i, v in enumerate(true)])
    return block


@pytest.mark.parametrize('name', TAUGHT)
def test_teaching_sequences_stand_first_and_in_order(name):
    task = Boolean(function=name, teaching=1.0)
    batch, x, y = drawn(task)
    for b in range(200):
        params = {key: leaf[b] for key, leaf in batch.meta.items()}
        block = taught_block(name, params, 10)
        np.testing.assert_array_equal(x[b, : len(block)], block)
        literals = np.count_nonzero(params.get('weights', 0))
        assert len(block) == {'conjunction': literals + 2, 'monotone_conjunction': literals + 1}.get(name, len(block))
        if 'conjunction' in name:
            assert y[b, : len(block)].tolist() == [1] * (len(block) - literals) + [-1] * literals
    assert batch.meta['taught'].all() and set(np.unique(x)) == {-1, 1}


def class_of(name, inputs):
    """All functions of a taught class as params of N rows."""
    if name == 'parity':
        return {'subset': jnp.array(list(itertools.product([0, 1], repeat=inputs)))}
    values = [-1, 0, 1] if name == 'conjunction' else [0, 1]
    clauses = list(itertools.product(values, repeat=inputs))
    count = FUNCTIONS[name].clauses
    return {'weights': jnp.array(list(itertools.combinations_with_replacement(clauses, count)))}


@pytest.mark.parametrize('name, inputs', [('conjunction', 4), ('monotone_conjunction', 7), ('parity', 7)])
def test_one_function_is_left_after_the_teaching_sequence(name, inputs):
    family, everything = FUNCTIONS[name], class_of(name, inputs)
    count = len(next(iter(everything.values())))
    blocks, lengths = family.teach(everything, family.longest_block(inputs))
    says = jax.vmap(lambda x: family.label(everything, jnp.broadcast_to(x[None], (count, *x.shape))))(blocks)
    true = np.asarray(family.label(everything, blocks))
    is_block = np.arange(blocks.shape[1])[None] < np.asarray(lengths)[:, None]
    fits = np.all((np.asarray(says) == true[:, None]) | ~is_block[:, None], axis=-1)
    np.testing.assert_array_equal(fits, np.eye(count, dtype=bool))


def test_three_clauses_are_told_if_none_contains_another_or_one_is_empty():
    family, everything = FUNCTIONS['monotone_dnf'], class_of('monotone_dnf', 4)
    weights = np.asarray(everything['weights'])
    count = len(weights)
    cube = np.array(list(itertools.product([-1.0, 1.0], repeat=4)), np.float32)
    tables = np.asarray(family.label(everything, jnp.broadcast_to(jnp.asarray(cube)[None], (count, 16, 4))))
    different = np.unique(tables, axis=0)
    blocks, lengths = (np.asarray(a) for a in family.teach(everything, family.longest_block(4)))
    where = np.sum((blocks > 0) * np.array([8, 4, 2, 1]), axis=-1)
    left = np.array(
        [np.sum(np.all(different[:, w[:n]] == t[w[:n]], axis=1)) for w, n, t in zip(where, lengths, tables)]
    )
    contains = np.all(weights[:, :, None] >= weights[:, None, :], axis=-1) & ~np.eye(3, dtype=bool)
    is_plain = ~np.any(contains, axis=(1, 2)) | np.any(weights.sum(axis=-1) == 0, axis=1)
    assert np.all(left[is_plain] == 1) and np.all(left >= 1)
    assert np.any(left[~is_plain] > 1)  # so the exception is one


def test_a_mixture_teaches_half_of_the_rows_and_scores_both_kinds():
    task = Boolean(function='monotone_conjunction', teaching=0.5)
    batch, _, y = drawn(task)
    taught = batch.meta['taught'] > 0
    assert within(taught, 0.5) and np.all(y[taught, 0] == 1) and within(y[~taught, 0] > 0, task.facts()['positive'])
    outputs = np.where(taught[:, None, None], batch.targets, -batch.targets)
    metrics = score(task, jnp.asarray(outputs), batch)
    assert np.all(metrics['taught_accuracy_by_point'].value() == 1)
    assert np.all(metrics['untaught_accuracy_by_point'].value() == 0)
    assert np.all(metrics['untaught_accuracy_by_point'].count == np.sum(~taught))
    assert float(metrics['accuracy'].value()) == pytest.approx(taught.mean())
    for kind in (0.0, 1.0):
        alone = dataclasses.replace(task, teaching=kind)
        assert not any('taught' in key for key in score(alone, jnp.asarray(outputs), batch))


def test_elimination_is_right_behind_the_teaching_sequence_from_then_on():
    task = Boolean(teaching=0.5)
    batch, _, y = drawn(task)
    right = np.sign(answers(task, 'elimination')) == y
    literals = np.count_nonzero(batch.meta['weights'], axis=(1, 2))
    behind = np.arange(40)[None] >= literals[:, None] + 2
    taught = batch.meta['taught'][:, None] > 0
    assert np.all(right[taught & behind]) and not np.all(right[~taught & behind])


@pytest.mark.parametrize('inputs', [4, 10])
def test_nearest_neighbours_copy_the_nearest_label_and_seeds_are_coins(inputs):
    task = Boolean(function='nearest_neighbours', inputs=inputs, points=30, seed_points=12)
    batch, x, y = drawn(task, 200)
    for b in range(40):
        for i in range(30):
            similar = [int(x[b, i] @ x[b, j]) for j in range(i)]
            if i >= 12 or inputs in similar:
                assert y[b, i] == y[b, similar.index(max(similar))]
            else:
                assert y[b, i] == batch.meta['coins'][b, i]
    assert np.all(answers(task, 'nearest_neighbour', 200)[:, 12:] == y[:, 12:])
    assert np.all(batch.mask[:, :24] == 0) and np.all(batch.mask[:, 24::2] == 1)


def test_seed_labels_tell_the_neighbour_rule_nothing():
    task = Boolean(function='nearest_neighbours', inputs=16)
    right = answers(task, 'nearest_neighbour') == drawn(task)[2]
    assert within(right[:, 1:20].mean(axis=1), 0.5) and np.all(right[:, 20:])
    assert within(drawn(task)[2][:, :20].mean(axis=1), 0)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_tokens_are_points_and_labels_in_turn(name):
    task = Boolean(function=name)
    batch, x, y = drawn(task)
    assert batch.inputs.shape == (ROWS, 80, task.input_size) and batch.inputs.dtype == np.float32
    assert batch.targets.shape == (ROWS, 80, task.output_size)
    assert set(np.unique(x)) == {-1, 1} and set(np.unique(y)) == {-1, 1}
    assert not np.any(batch.inputs[:, 1::2, 1:])
    assert not np.any(batch.targets[:, 1::2]) and not np.any(batch.mask[:, 1::2])
    np.testing.assert_array_equal(batch.targets[:, ::2, 0], y)
    first = task.family.unscored
    assert np.all(batch.mask[:, : 2 * first : 2] == 0) and np.all(batch.mask[:, 2 * first :: 2] == 1)
    np.testing.assert_array_equal(batch.meta['clean'], y)


@pytest.mark.parametrize('name', ['conjunction', 'nearest_neighbours'])
def test_labels_are_turned_where_they_are_shown_and_where_they_are_scored(name):
    task = Boolean(function=name, label_noise=0.3)
    batch, _, y = drawn(task)
    np.testing.assert_array_equal(batch.targets[:, ::2, 0], y)
    np.testing.assert_array_equal(batch.meta['clean'], drawn(Boolean(function=name))[2])
    assert within((y != batch.meta['clean']).mean(axis=1), 0.3)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_label_changes_no_answer_up_to_its_point(name):
    task = Boolean(function=name)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[:16]), drawn(task)[0])
    learn = jax.jit(task.baselines)
    before = learn(batch)
    for i in (0, 4, 20):
        after = learn(batch.replace(inputs=batch.inputs.at[:, 2 * i + 1, 0].multiply(-1)))
        for learner in before:
            np.testing.assert_array_equal(before[learner][:, : 2 * i + 2], after[learner][:, : 2 * i + 2])
            assert i == 20 or np.any(before[learner] != after[learner])
            assert np.all(np.isfinite(after[learner]))


def test_the_loss_is_the_cross_entropy_of_the_label_and_stays_finite():
    task = Boolean(function='majority', inputs=3, points=6)
    batch, _, y = drawn(task, 50)
    logits = np.random.default_rng(0).normal(size=(50, 12, 1)).astype(np.float32)
    chance = 1 / (1 + np.exp(-logits[:, ::2, 0].astype(np.float64)))
    expected = -np.mean(np.where(y > 0, np.log(chance), np.log(1 - chance)))
    assert float(task.loss(jnp.asarray(logits), batch).value()) == pytest.approx(expected, rel=1e-5)
    wrong = task.loss(jnp.asarray(-1e4 * batch.targets, jnp.bfloat16), batch)
    assert float(wrong.value()) == pytest.approx(1e4, rel=0.01) and wrong.total.dtype == jnp.float32
    assert float(task.loss(jnp.asarray(1e4 * batch.targets), batch).value()) == 0


def test_a_logit_of_zero_is_wrong_and_accuracies_are_told_by_point():
    task = Boolean(function='majority', inputs=3, points=4)
    batch, _, y = drawn(task, 50)
    outputs = np.zeros((50, 8, 1), np.float32)
    assert float(score(task, outputs, batch)['accuracy'].value()) == 0
    outputs[:, 6, 0], outputs[:25, 2, 0], outputs[:, 1] = y[:, 3], y[:25, 1], 1
    metrics = score(task, outputs, batch)
    assert metrics['accuracy_by_point'].value().tolist() == [0, 0.5, 0, 1]
    assert float(metrics['last_accuracy'].value()) == 1 and float(metrics['accuracy'].value()) == 0.375
    assert float(metrics['accuracy'].count) == 200 and metrics['accuracy_by_point'].count.tolist() == [50] * 4


@pytest.mark.slow
@pytest.mark.parametrize('name', ['conjunction', 'threshold', 'nearest_neighbours'])
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(name):
    teaching = 0.5 if name == 'conjunction' else 0.0
    task = Boolean(function=name, inputs=5, points=9, teaching=teaching, label_noise=0.1, seed_points=3)
    assert_one_key_is_one_batch(task, rows=4)


BAD = {
    'name': (dict(function='conjuction'), "function=conjuction is unknown; did you mean 'conjunction'"),
    'inputs': (dict(function='sparse_disjunction', inputs=3), 'inputs=3 must be at least 4 for sparse_disjunction'),
    'no_inputs': (dict(inputs=0), 'inputs=0 must be at least 1 for conjunction'),
    'points': (dict(points=0), 'points=0 must be at least 1'),
    'teaching': (dict(teaching=1.5), r'teaching=1.5 must lie in 0\.\.1'),
    'untaught': (dict(function='dnf', teaching=0.5), 'dnf has no teaching sequence; these have one: conjunction, mono'),
    'block': (dict(points=11, teaching=0.5), 'points=11 must be at least 12, the longest teaching sequence of conjunc'),
    'blocks': (dict(function='monotone_dnf', points=32, teaching=1.0), 'points=32 must be at least 33'),
    'noise': (dict(label_noise=0.6), r'label_noise=0.6 must lie in 0\.\.0\.5'),
    'seeds': (dict(function='nearest_neighbours', points=20), 'seed_points=20 must be at least 1 and less than points'),
    'no_seeds': (dict(function='nearest_neighbours', seed_points=0), 'seed_points=0 must be at least 1'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_settings_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Boolean(**fields)


def test_blocks_that_just_fit_are_taken():
    assert Boolean(points=12, teaching=0.5).family.longest_block(10) == 12
    assert Boolean(function='monotone_dnf', points=33, teaching=1.0).family.longest_block(10) == 33
    assert Boolean(function='parity', points=10, teaching=1.0).family.longest_block(10) == 10


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_tiny_copy_keeps_the_choices(name):
    task = Boolean(function=name, teaching=0.5 if name in TAUGHT else 0.0, label_noise=0.1)
    tiny = task.tiny()
    assert tiny.inputs < task.inputs and tiny.points < task.points
    assert (tiny.function, tiny.teaching, tiny.label_noise) == (name, task.teaching, 0.1)
    assert tiny.tiny() == tiny
    assert not isinstance(tiny.family, NearestNeighbours) or tiny.family.seeds == 4
