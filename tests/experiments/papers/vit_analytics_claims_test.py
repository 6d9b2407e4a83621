"""Paper 47's atlas: codes as wide as maps lose nothing, two kinds are two clusters, maps stand around patches."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.vit_analytics import atlas, photos


def test_codes_as_wide_as_the_maps_lose_nothing():
    maps = np.random.default_rng(0).normal(size=(40, 6))
    _, error = atlas.train(maps, jax.random.key(0), 2000, code=6, hidden=32)
    assert error < 0.02
    assert atlas.train(maps, jax.random.key(0), 50, code=1, hidden=4)[1] > 0.3


def test_two_templates_are_two_clusters():
    generator, names = np.random.default_rng(1), np.arange(60) % 2
    templates = generator.normal(size=(2, 25))
    maps = templates[names] + 0.05 * generator.normal(size=(60, 25))
    params, _ = atlas.train(maps, jax.random.key(1), 300)
    codes = np.asarray(atlas.encode(params, jnp.asarray(maps, jnp.float32)))
    own = atlas.clusters(codes, 2, seed=0)
    assert np.all(own == names) or np.all(own == 1 - names)
    assert atlas.silhouette(codes, own) > 0.8 > atlas.silhouette(codes, generator.integers(0, 2, 60))


def test_a_map_stands_around_its_patch():
    grid, reach = (4, 5), 2
    patches = grid[0] * grid[1]
    right = np.zeros((1, 1, 1, patches + 1, patches + 1))  # every patch looks at its right neighbour
    for patch in range(patches):
        right[..., 1 + patch, 1 + patch + 1 if patch % grid[1] < grid[1] - 1 else 0] = 1.0
    maps, _ = atlas.centred(right, grid, reach, 30, seed=0)
    seen = maps.reshape(-1, 5, 5)
    assert np.all((seen[:, 2, 3] == 1) | (seen.sum(axis=(1, 2)) == 0))
    assert np.all(np.delete(seen.reshape(-1, 25), 13, axis=1) == 0) and seen.sum() > 15


def test_windows_cover_the_photo():
    images = photos.windows(4, 56)
    assert images.shape == (4, 56, 56, 3) and 0 <= images.min() < images.max() <= 1
    assert len({image.tobytes() for image in images}) == 4
