"""What tests of testbeds share: rows drawn under jit, means against what is known, one key that is one batch."""

import functools

import jax
import numpy as np

draw = jax.jit(lambda task, key, rows: task.sample(key, rows), static_argnums=(0, 2))
solve = jax.jit(lambda task, batch: task.baselines(batch), static_argnums=0)


def within(values, expected, *, errors=4.5, known_to=1e-12):
    """Whether the mean of independent values is the expected one, to standard errors and to what it is known."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) <= errors * values.std() / np.sqrt(len(values)) + known_to


def assert_one_key_is_one_batch(task, rows, atol=None):
    """The same key gives the same batch under jit, vmap and sharded over two devices; another key another batch.

    To the bit, or to `atol` where programs may round differently.
    """
    keys = jax.random.split(jax.random.key(5), 2)
    expected = draw(task, keys[1], rows)
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    by_row = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    sharded = jax.jit(task.sample, static_argnums=1, out_shardings=by_row)(keys[1], rows)
    assert len(sharded.inputs.sharding.device_set) == 2
    mapped = jax.jit(jax.vmap(lambda key: task.sample(key, rows)))(keys)
    close = functools.partial(np.testing.assert_allclose, atol=atol)
    for other in (sharded, jax.tree.map(lambda leaf: leaf[1], mapped)):
        jax.tree.map(np.testing.assert_array_equal if atol is None else close, other, expected)
    assert not np.allclose(mapped.inputs[0], expected.inputs)
