"""Scenes of voxels: what is seen where, of which class, in which window; exact answers and facts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers.scattered_linear import ScatteredLinearConfig
from jattn.testbeds.voxels import BOX, CYLINDER, EMPTY, GROUND, POLE, Objects, Voxels, scene
from tests.testbeds.draws import draw

TASK = Voxels(grid=(3, 12, 12), window=4, tokens=128, boxes=1, cylinders=1, poles=2, reach=3.0, sides=(1.5, 2.5))
ROWS = 400


@pytest.fixture(scope='module')
def drawn():
    return jax.tree.map(np.asarray, draw(TASK, jax.random.key(0), ROWS))


def test_tokens_are_different_voxels_sorted_by_window_with_padding_at_the_end(drawn):
    across = -(-TASK.grid[2] // TASK.window)
    for segments, at, mask in zip(drawn.segments, drawn.context['coordinates'], drawn.mask):
        real = int(mask.sum())
        assert np.all(mask[:real] == 1) and np.all(segments[real:] == 0) and np.all(at[real:] == 0)
        assert np.all(np.diff(segments[:real]) >= 0)
        np.testing.assert_array_equal(segments[:real], 1 + at[:real, 1] // 4 * across + at[:real, 2] // 4)
        assert len({tuple(place) for place in at[:real]}) == real
    assert 0 < drawn.mask.mean() < 1


def test_a_scene_has_walls_roofs_and_ground_around_them():
    """A box of 5 x 3 places and a pole, by hand."""
    task = dataclasses.replace(TASK, boxes=1, cylinders=0, poles=1)
    objects = Objects(
        center=jnp.array([[4.0, 3.0], [9.0, 9.0]]), half=jnp.array([[2.0, 1.0], [0.5, 0.5]]), height=jnp.array([2, 3])
    )
    classes, owner = map(np.asarray, scene(task, objects))
    assert (owner == 0).sum() == 15 and (owner == 1).sum() == 1 and owner[9, 9] == 1
    assert np.all(classes[0][owner < 0] == GROUND) and np.all(classes[1:, owner < 0] == EMPTY)
    assert np.all(classes[:, 9, 9] == POLE)
    box = classes[:, 2:7, 2:5]
    assert np.all(box[1] == BOX) and np.all(box[2] == EMPTY)  # its roof, and nothing above
    assert np.all(box[0, 1:-1, 1] == EMPTY) and (box[0] == BOX).sum() == 12  # walls around an unseen inside


def test_a_cylinder_is_round_and_a_later_object_stands():
    task = dataclasses.replace(TASK, boxes=1, cylinders=1, poles=0)
    objects = Objects(
        center=jnp.array([[5.0, 5.0], [5.0, 5.0]]), half=jnp.array([[3.0, 3.0], [3.0, 3.0]]), height=jnp.array([3, 2])
    )
    classes, owner = map(np.asarray, scene(task, objects))
    assert owner[2, 2] == 0 and owner[2, 5] == owner[5, 5] == owner[5, 8] == 1  # the box's corner stays
    assert (owner == 1).sum() == 29 and classes[1, 5, 5] == CYLINDER and classes[2, 5, 5] == EMPTY


def test_the_share_of_ground_that_is_seen_falls_with_the_square_of_the_distance():
    task = dataclasses.replace(TASK, boxes=0, cylinders=0, poles=1, tokens=144)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(1), 2000))
    seen, at = np.zeros(task.grid), batch.context['coordinates']
    ground = (batch.mask > 0) & (batch.targets == GROUND)
    np.add.at(seen, tuple(np.moveaxis(at[ground], -1, 0)), 1)
    assert seen[1:].sum() == 0
    rate = seen[0] / len(at)
    expected = task._chance() * (1 - 1 / 144)  # the pole stands on one place of all
    assert np.all(np.abs(rate - expected) < 5 * np.sqrt(expected / len(at)) + 1e-3)


def test_who_knows_the_objects_is_right_and_a_guess_costs_the_log_of_four(drawn):
    answers = TASK.baselines(drawn)['geometry']
    metrics = TASK.metrics(answers, drawn)
    for name, mean in metrics.items():
        assert float(mean.value()) == pytest.approx(TASK.facts()['geometry'] if name == 'loss' else 1.0, abs=1e-6)
    guess = TASK.loss(jnp.zeros_like(answers), drawn)
    assert float(guess.value()) == pytest.approx(TASK.facts()['chance_loss'])


def test_an_iou_is_its_intersection_over_its_union(drawn):
    """Who says box everywhere has all boxes, and the share of them as their IoU."""
    outputs = jnp.broadcast_to(jax.nn.one_hot(BOX, 4), (*drawn.targets.shape, 4))
    metrics = TASK.metrics(outputs, drawn)
    share = (drawn.targets[drawn.mask > 0] == BOX).mean()
    assert float(metrics['iou_box'].value()) == pytest.approx(share, rel=1e-5)
    assert float(metrics['iou_pole'].value()) == float(metrics['iou_ground'].value()) == 0
    assert float(metrics['accuracy'].value()) == pytest.approx(share, rel=1e-5)
    counted = metrics['accuracy_cut'].count + metrics['accuracy_whole'].count
    assert int(counted) == int(((drawn.targets != GROUND) & (drawn.mask > 0)).sum())


def test_an_object_is_cut_where_it_stands_in_two_windows():
    task = dataclasses.replace(TASK, boxes=2, cylinders=0, poles=0)
    objects = Objects(
        center=jnp.array([[1.5, 1.5], [4.0, 9.5]]), half=jnp.array([[1.5, 1.5], [1.5, 1.0]]), height=jnp.array([2, 2])
    )
    assert task._is_cut(objects).tolist() == [False, True]


def test_rows_do_not_depend_on_how_many_are_drawn_and_inputs_know_no_class(drawn):
    again = draw(TASK, jax.random.key(0), ROWS)
    np.testing.assert_array_equal(again.inputs, drawn.inputs)
    other = np.asarray(draw(TASK, jax.random.key(2), ROWS).inputs)
    assert not np.array_equal(other, drawn.inputs)
    at = drawn.context['coordinates']
    places, inputs = at.reshape(-1, 3), drawn.inputs.reshape(-1, 4)
    real = drawn.mask.reshape(-1) > 0
    _, first, number = np.unique(places[real], axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(inputs[real], inputs[real][first][number.reshape(-1)])


BAD = {
    'grid': ({'grid': (1, 8, 8)}, 'grid=.* at least 2'),
    'window': ({'window': 0}, 'window=0'),
    'poles': ({'poles': -1}, 'poles=-1'),
    'sides': ({'sides': (3.0, 2.0)}, 'sides='),
    'tokens': ({'grid': (2, 4, 4), 'tokens': 33}, 'tokens=33 are more than the 32'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Voxels(**fields)


def test_the_tiny_scene_has_the_grid_of_a_tiny_mixer_and_keeps_classes():
    mixer = ScatteredLinearConfig(cross_window=True, window=8, grid=Voxels().grid).tiny()
    task = Voxels().tiny()
    assert (task.grid, task.window) == (mixer.grid, mixer.window)
    assert hash(task) == hash(Voxels().tiny()) and set(task.kinds) == {BOX, CYLINDER, POLE}
