"""The rerun of paper 20: windows, padding, and what is said of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.cost import Cost
from experiments.papers.scatterformer import pictures, scenes, windows
from experiments.papers.scatterformer.local import LocalConfig
from experiments.papers.scatterformer.settings import ALONE, CROSS, NONE, SIZES, mixers
from jattn.contract import Context
from jattn.testbeds.voxels import CLASSES

SMALL = SIZES['small']


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_settings_are_made_and_rivals_share_their_first_layer(size):
    assert all(setting.module is not None for setting in scenes.settings(size).values())
    found = mixers(size)
    assert len({layers[0] for layers in found.values()}) == 1 and {len(layers) for layers in found.values()} == {3}
    assert found[CROSS][1].cross_window and not found[ALONE][1].cross_window
    assert found[CROSS][1].grid == found[NONE][1].grid == size.scenes.grid


def test_the_largest_window_of_the_claim_is_twenty_times_the_mean():
    sizes = windows.window_sizes(20000, SMALL.mean_window, SMALL.sigma)
    assert sizes.sum() == 20000 and sizes.min() >= 1 and sizes.mean() == SMALL.mean_window
    assert abs(sizes.max() / sizes.mean() - 20) < 4


def test_flat_and_padded_attention_are_the_same_and_softmax_is_that_of_each_window():
    size = SIZES['tiny']
    assert windows.difference(size) < 1e-4
    sizes = np.array([3, 1, 4])
    q, k, v = windows.inputs(size, 8)
    z = jax.jit(windows.padded_softmax)(q, k, v, jnp.asarray(windows.padded_rows(sizes)))
    np.testing.assert_allclose(z[0, 3], v[0, 3], rtol=1e-5)  # alone in its window
    scores = np.einsum('thk,shk->hts', q[0, 4:], k[0, 4:]) * q.shape[-1] ** -0.5
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(z[0, 4:], np.einsum('hts,shk->thk', weights, v[0, 4:]), rtol=1e-4, atol=1e-5)


def test_a_convolution_in_place_of_attention_reads_its_neighbours_alone():
    mixer = LocalConfig(grid=(2, 4, 4), width=4).make()
    at = jnp.array([[[0, 0, 0], [0, 1, 1], [0, 3, 3], [0, 0, 0]]])
    context = Context(segments=jnp.array([[1, 1, 2, 0]]), coordinates=at)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4))
    variables = mixer.init(jax.random.key(1), x, context)
    y = mixer.apply(variables, x, context)[0]
    moved = mixer.apply(variables, x.at[0, 1].add(1.0).at[0, 3].add(1.0), context)[0]
    assert np.any(moved[0, 0] != y[0, 0]) and np.array_equal(moved[0, 2], y[0, 2]) and np.all(y[0, 3] == 0)


def test_lines_on_costs_compare_what_they_name():
    lengths = (4096, 20000)
    power = lambda scale: Cost(lengths, scale * np.array(lengths, float), scale * np.array(lengths, float))
    size = dataclasses.replace(SMALL, cost_lengths=lengths)
    found = {windows.FLAT: power(1.0), windows.EVEN: power(0.9), windows.PADDED: power(8.0), windows.SOFTMAX: power(40)}
    assert [line.holds for line in windows.lines(found, 1e-6, size)] == [True] * 7
    found = {windows.FLAT: power(1.0), windows.EVEN: power(0.5), windows.PADDED: power(2.0), windows.SOFTMAX: power(2)}
    assert [line.holds for line in windows.lines(found, 1e-3, size)] == [True, False, True, *[False] * 4]


def test_lines_on_scenes_compare_what_they_name():
    run = lambda iou, cut, whole: [
        {'variables': {}, **{f'iou_{name}': iou for name in CLASSES}, 'accuracy_cut': cut, 'accuracy_whole': whole}
    ]
    found = {CROSS: run(0.8, 0.9, 0.9), ALONE: run(0.7, 0.8, 0.88), NONE: run(0.6, 0.7, 0.7)}
    assert [line.holds for line in scenes.lines(found, SMALL)] == [True] * 3
    found = {CROSS: run(0.6, 0.8, 0.9), ALONE: run(0.7, 0.8, 0.88), NONE: run(0.8, 0.7, 0.7)}
    assert [line.holds for line in scenes.lines(found, SMALL)] == [False] * 3


def test_a_place_shows_its_highest_voxel():
    task = dataclasses.replace(SIZES['tiny'].scenes, grid=(3, 2, 2), tokens=4)
    at = np.array([[2, 0, 1], [0, 0, 1], [0, 1, 1], [0, 0, 0]])
    plan = pictures.above(np.array([1, 0, 2, 3]), at, np.array([True, True, True, False]), task)
    assert plan.tolist() == [[-1, 1], [-1, 2]]
