"""Curricula: the published values, the counters they replace, and what is refused."""

import jax
import numpy as np
import pytest

from jattn.testbeds.curriculum import CURRICULA, Ramp


def test_the_published_ramps_have_the_published_values():
    linear, nonlinear = CURRICULA['linear'], CURRICULA['nonlinear']
    assert [int(linear.dims(step)) for step in (0, 1999, 2000, 3999, 4000)] == [5, 5, 6, 6, 7]
    assert [int(linear.dims(step)) for step in (29_999, 30_000, 500_000)] == [19, 20, 20]
    assert [int(linear.points(step)) for step in (0, 1999, 2000, 29_999, 30_000, 500_000)] == [11, 11, 13, 39, 41, 41]
    assert [int(nonlinear.points(step)) for step in (0, 2000, 29_999, 30_000)] == [26, 31, 96, 101]
    assert {ramp.steps for c in CURRICULA.values() for ramp in (c.dims, c.points)} == {30_000}


@pytest.mark.parametrize('sizes', [(3, 4, 7, 14), (1, 1, 1, 5), (2, 9, 3, 4), (6, 0, 2, 6), (6, 2, 2, 6)], ids=str)
def test_a_ramp_is_the_counter_that_is_moved_after_every_step(sizes):
    start, increment, interval, end = sizes
    ramp = Ramp(start=start, increment=increment, interval=interval, end=end)
    value, expected = start, []
    for step in range(1, 41):
        expected.append(value)
        value = min(value + increment * (step % interval == 0), end)
    got = jax.jit(jax.vmap(ramp))(np.arange(40))
    assert got.dtype == np.int32 and got.tolist() == expected
    assert ramp.steps == (expected.index(end) if end in expected else None)


def test_a_ramp_does_not_overflow_at_the_last_steps():
    assert int(Ramp(start=1, increment=2**20, interval=1, end=2**30)(2**31 - 1)) == 2**30


BAD = {
    'never_ends': (dict(increment=0), 'increment is 0, but then the ramp never ends: start = 5 stays below end = 20'),
    'increment': (dict(increment=-1), 'increment is -1, but it must not be negative'),
    'interval': (dict(interval=0), 'interval is 0, but it must be at least 1'),
    'start_past_end': (dict(start=21), r'start is 21, but it must lie in 1\.\.end = 20'),
    'start': (dict(start=0), r'start is 0, but it must lie in 1\.\.end = 20'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_ramps_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=f'Ramp: {message}'):
        Ramp(**{**dict(start=5, increment=1, interval=2000, end=20), **fields})


def test_a_tiny_copy_grows_where_the_curriculum_grows():
    tiny = CURRICULA['linear'].tiny(4, 9)
    assert (tiny.dims.end, tiny.points.end) == (4, 9) and tiny.dims.start < 4 and tiny.points.start < 9
    assert max(tiny.dims.steps, tiny.points.steps) < 10
    assert Ramp(start=7, increment=0, interval=5, end=7).tiny(3).start == 3
