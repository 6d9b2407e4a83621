"""The rerun of paper 06: models side by side are trained apart, and lines compare what they name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.contract import ClaimContext
from experiments.papers.icl_boolean import exact, learning
from experiments.papers.icl_boolean.columns import Columns, ColumnsConfig, column_of, joined
from experiments.papers.icl_boolean.settings import (
    ALL,
    FUNCTIONS,
    LMM,
    NEIGHBOURS,
    SIZES,
    SOFTMAX,
    TAUGHT,
    mixer,
    table,
)
from experiments.papers.small_models import Setting, outputs, train
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Batch, Boolean
from jattn.training.optimizer import AdamWConfig
from jattn.understanding.neighbour_heads import NeighbourHeads

SMALL = SIZES['small']
TASKS = tuple(Boolean(function=name, inputs=4, points=4) for name in ('conjunction', 'sparse_parity'))
DECODER = DecoderConfig(width=8, layers=1, mixer=(SoftmaxConfig(heads=1),), feed_forward=None, remat='none')


def side_by_side(tasks, steps=3):
    return Setting(
        model=ColumnsConfig(width=8, decoder=DECODER, columns=len(tasks)),
        data=Columns(tasks=tasks),
        steps=steps,
        batch=4,
        optimizer=AdamWConfig(peak_lr=1e-2, warmup_steps=1, weight_decay=0.0, clip_norm=None),
    )


def test_models_side_by_side_read_their_own_rows_with_their_own_parameters():
    setting = side_by_side(TASKS)
    variables, _ = train(setting, jax.random.key(0))
    batches = setting.data.each(jax.random.key(1), 3)
    said = outputs(setting, variables, joined(batches))
    alone = setting.model.for_data('linear', 4, 1).decoder.make()
    for n, batch in enumerate(batches):
        own, _ = alone.apply({'params': column_of(variables['params'], n)}, batch.inputs)
        np.testing.assert_allclose(said[3 * n : 3 * n + 3], own, atol=1e-5)
    assert not np.allclose(*(jax.tree.leaves(column_of(variables['params'], n))[0] for n in (0, 1)))


def test_what_a_model_learns_does_not_depend_on_its_neighbour():
    other = (TASKS[0], dataclasses.replace(TASKS[1], label_noise=0.4))
    (first, _), (second, _) = (train(side_by_side(tasks), jax.random.key(0)) for tasks in (TASKS, other))
    own, same = (jax.tree.leaves(column_of(variables['params'], 0)) for variables in (first, second))
    for a, b in zip(own, same):
        np.testing.assert_allclose(a, b, atol=1e-6)
    pairs = zip(*(jax.tree.leaves(column_of(variables['params'], 1)) for variables in (first, second)))
    assert any(not np.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_rows_of_a_task_do_not_depend_on_what_other_tasks_there_are():
    one, two = (Columns(tasks=TASKS[:n]).each(jax.random.key(0), 5)[0] for n in (1, 2))
    np.testing.assert_array_equal(one.inputs, two.inputs)
    whole = Columns(tasks=TASKS).sample(jax.random.key(0), 5)
    np.testing.assert_array_equal(whole.inputs[:5], one.inputs)
    with pytest.raises(ValueError, match='equal inputs and points'):
        Columns(tasks=(TASKS[0], Boolean()))


def test_every_mixer_of_the_table_has_the_simple_classes_and_sparse_parity():
    for name, setting in table(SMALL).items():
        functions = tuple(task.function for task in setting.data.tasks)
        assert functions == FUNCTIONS[: 4 if name == LMM else 5] and setting.optimizer.clip_norm is None
        assert setting.model.columns == len(functions)
    assert tuple(table(SMALL)) == tuple(name for name in ALL if name != 'retnet')
    assert tuple(table(SIZES['paper'])) == ALL and mixer(SOFTMAX, SMALL).heads == 2
    assert SMALL.task(TAUGHT).teaching == 0.5 and SMALL.task(NEIGHBOURS).family.unscored == 8


def curve(value):
    return np.full(SMALL.points, value)


def known():
    exact = {name: curve(0.9) for name in FUNCTIONS if name != 'dnf'}
    return {
        'bayes': {name: exact[name] for name in ('sparse_disjunction', 'sparse_parity', 'majority')},
        'elimination': {name: exact[name] for name in ('conjunction', 'sparse_disjunction')},
        'nearest_neighbour': {name: curve(0.7) for name in FUNCTIONS},
        'three_neighbours': {name: curve(0.6) for name in FUNCTIONS},
        'averaging': {name: curve(0.8 if name == 'dnf' else 0.5) for name in FUNCTIONS},
        learning.ALONE: {'sparse_parity': curve(0.59), 'majority': curve(0.66)},
    }


def test_lines_compare_softmax_with_the_best_of_the_others():
    found = {name: {function: curve(0.6) for function in FUNCTIONS} for name in (SOFTMAX, 'retnet', 'qlstm')}
    found['qlstm'] |= {'conjunction': curve(0.65), 'sparse_parity': curve(0.51)}
    found[SOFTMAX] |= {'majority': curve(0.65), 'dnf': curve(0.7)}
    lines = learning.lines(found, known(), SMALL)
    assert [line.holds for line in lines] == [False, True, True, False, False, True, True, False]
    gaps = [line.measured for line in (*lines[:3], *lines[-2:])]
    np.testing.assert_allclose(gaps, [-0.05, 0.0, 0.1, 0.01, -0.01], atol=1e-9)
    assert 'qlstm 0.650 (gap 0.250)' in lines[0].note
    solved = learning.lines(found, known(), dataclasses.replace(SMALL, solved=True))
    assert len(solved) == len(lines) + 3 and not any(line.holds for line in solved[-3:])


def test_the_exact_learner_is_bayes_then_elimination_then_the_best_of_the_rest():
    names = [learning.exact_of(function, known()) for function in ('majority', 'conjunction', 'dnf')]
    assert names == ['bayes', 'elimination', 'averaging']


def test_a_training_that_failed_holds_under_no_rule():
    found = {SOFTMAX: {name: curve(np.nan) for name in FUNCTIONS}, 'retnet': {name: curve(0.5) for name in FUNCTIONS}}
    lines = learning.lines(found, known(), SMALL)
    assert [line.holds for line in lines] == [False, False, False, False, True, False, False]
    assert not any(line.holds for line in learning.long_lines({SOFTMAX: None, 'deltanet': None}, SMALL))


def test_who_sees_a_point_alone_knows_what_bayes_knows_at_the_first(tmp_path):
    size = dataclasses.replace(SMALL, inputs=5, points=6, rows=3000, mixers=(SOFTMAX,), columns=4)
    found = learning.learners(ClaimContext('small', tmp_path), size)
    alone = found[learning.ALONE]['sparse_parity']
    exact = size.task('sparse_parity').facts()['bayes_accuracy_at_0']
    assert alone[0] == found['bayes']['sparse_parity'][0]
    assert np.all(np.abs(alone - exact) < 4 * np.sqrt(exact * (1 - exact) / 3000))
    assert 'dnf' not in found[learning.ALONE] and set(found['elimination']) == {'conjunction', 'sparse_disjunction'}


def taught_batch():
    """Two rows of functions with one literal: the first taught, its sequence three points long."""
    weights = np.zeros((2, 1, 4), np.int32)
    weights[:, 0, 0] = 1
    targets = np.zeros((2, 10, 1), np.float32)
    targets[:, ::2] = 1
    meta = {'taught': jnp.array([1.0, 0.0]), 'weights': weights}
    return Batch(inputs=jnp.zeros((2, 10, 4)), targets=jnp.asarray(targets), mask=jnp.ones((2, 10)), meta=meta)


def test_points_behind_the_sequence_are_counted_by_kind_of_row():
    said = np.zeros((2, 10, 1), np.float32)
    said[0, [6, 8]] = 1  # right at both points behind, and nowhere else
    said[1, [0, 8]] = 1
    elimination = np.ones((2, 10, 1), np.float32)
    heads = NeighbourHeads((0, 1), jnp.array([[0.1, 0.6], [0.2, 0.5]]))
    found = learning._long(taught_batch(), jnp.asarray(said), jnp.asarray(elimination))
    found = dataclasses.replace(found, neighbours=curve(0.8), heads=heads)
    assert (found.behind, found.behind_untaught) == (1.0, 0.5)
    assert found.taught.tolist() == [0, 0, 0, 1, 1] and found.untaught.tolist() == [1, 0, 0, 0, 1]
    behind, untaught, gain, *other, neighbours = learning.long_lines({SOFTMAX: found, 'deltanet': found}, SMALL)
    assert [line.measured for line in other] == [line.measured for line in (behind, untaught, gain)]
    assert behind.holds and behind.measured == 1 and gain.holds and gain.measured == 0.5
    assert not untaught.holds and untaught.measured == pytest.approx(-0.6)
    assert neighbours.measured == 2 and 'head 1 of layer 0: 0.60' in neighbours.note


def test_teaching_sequences_tell_all_functions_but_ors_of_clauses_that_contain_another():
    told = {name: exact.identified(name, 4) for name in ('conjunction', 'monotone_conjunction', 'parity')}
    assert {name: (int(is_told.sum()), len(is_told)) for name, is_told in told.items()} == {
        'conjunction': (81, 81),
        'monotone_conjunction': (16, 16),
        'parity': (16, 16),
    }
    dnf = exact.identified('monotone_dnf', 4)
    assert (int((~dnf).sum()), len(dnf)) == (473, 816)


def test_exact_lines_say_what_the_testbed_says(tmp_path):
    size = dataclasses.replace(SIZES['tiny'], exact_inputs=6, exact_points=8)
    lines = exact.lines(ClaimContext('tiny', tmp_path), size)
    assert len({line.line for line in lines}) == len(lines) == 12
    by_start = {line.line.split(':')[0]: line for line in lines}
    assert by_start['elimination, n = 28, m = 70'].holds and by_start['elimination, n = 10, m = 40'].holds
    assert next(line for line in lines if 'Gaussian' in line.line).measured == '5 of 5'
    ranks = exact.parity_ranks(jax.random.key(0), 400, 3)
    assert abs(np.mean(ranks == 3) - 7 / 8 * 3 / 4 / 2) < 0.1 and ranks.max() == 3
