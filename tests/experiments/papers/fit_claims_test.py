"""The rerun of paper 30: the names that are planted in its text."""

import numpy as np

from experiments.papers.fit_trunk.names import CUE, PlantedNames
from experiments.papers.novels import Rows
from jattn.data import TextConfig
from jattn.testbeds import Batch


def test_every_group_but_the_first_asks_for_the_name_that_it_told():
    group, letters = 16, 3
    data = PlantedNames(text=TextConfig(), tokens=4 * group, group=group, letters=letters, held_out_rows=2)
    rows, asked = data.planted(np.zeros((5, 4 * group + 1), np.int32), np.random.default_rng(0))
    planted = rows[:, :-1].reshape(5, 4, group)
    assert np.all(np.sum(planted > 0, axis=-1) == len(CUE) + letters + 1)  # whole, and one a group
    capitals = (ord('A') <= planted) & (planted <= ord('Z'))
    names = planted[capitals].reshape(5, 4, letters)
    assert np.all(names == names[:, :1])
    np.testing.assert_array_equal(asked[:, :-1].reshape(5, 4, group), capitals * (np.arange(4) > 0)[:, None])
    assert len({tuple(name) for name in names[:, 0]}) == 5


def test_rows_are_told_apart_by_their_bytes():
    first, other = (Batch(row, row, np.ones((1, 4), np.float32)) for row in (np.zeros((1, 4)), np.ones((1, 4))))
    assert Rows(first, 4).fingerprint() == Rows(first, 4).fingerprint() != Rows(other, 4).fingerprint()
