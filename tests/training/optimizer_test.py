"""Roles decide: who decays, who gets Muon, the same for a scanned and an unrolled tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import OPTIMIZERS, AdamWConfig, MuonConfig, matrix_axes
from tests.marks import slow_where


def names_of(boxed):
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def boxed_params(cfg):
    """Random values in the shapes of init, whose program would be large."""
    shapes = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes)


def decoder(scan):
    mixers = tuple(MIXERS[name].tiny() for name in ('softmax', 'rg_lru', 'rwkv7', 'titans_mac'))
    sizes = dict(read_in='tokens', input_size=16, output_size=16)
    return DecoderConfig(width=32, layers=2 * len(mixers), mixer=mixers, scan=scan, **sizes)


@pytest.mark.parametrize(
    'names, axes',
    [
        (('layers', 'embed', 'mlp'), ((1,), (2,))),
        (('heads', 'head', 'embed'), ((0, 1), (2,))),
        (('layers', 'mlp'), None),
        (('embed', 'vocab'), None),
        (('layers', 'tap', 'mlp'), None),
        (('layers', 'gate', 'heads', 'head', 'head_out'), None),
    ],
)
def test_matrices_are_told_by_their_names(names, axes):
    found = matrix_axes(names)
    assert (found and (found.reduction_axis, found.output_axis)) == axes


# Muon tells the axes of a matrix from those of layers; AdamW treats every number alike.
@pytest.mark.parametrize('name', slow_where(lambda name: name != 'muon', OPTIMIZERS))
def test_a_scanned_and_an_unrolled_tree_get_equal_updates(name):
    config = dataclasses.replace(OPTIMIZERS[name], warmup_steps=0, clip_norm=None)
    scanned, flat = decoder(True), decoder(False)
    params, other = nn.unbox(boxed_params(scanned)), nn.unbox(boxed_params(flat))
    # The unrolled tree with the scanned one's values: layer by layer from its place to its place.
    moved = jax.tree.map(lambda x: x, other)
    for (source, n), ((group, slot), m) in zip(scanned.layer_sites(), flat.layer_sites()):
        values = params[source[0]][source[1]]
        moved[group][slot] = jax.tree.map(lambda new, old, n=n: old[n][None], other[group][slot], values)
        assert m == 0
    for name_ in ('embedding', 'final_norm', 'read_out'):
        moved[name_] = params[name_]

    def update(cfg, tree):
        tx = config.make(10, names_of(boxed_params(cfg)))
        gradient = jax.tree.map(jnp.sin, tree)
        return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(gradient, tree)

    ours, theirs = update(scanned, params), update(flat, moved)
    for (source, n), ((group, slot), _) in zip(scanned.layer_sites(), flat.layer_sites()):
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b[0], rtol=0, atol=1e-5 * np.max(np.abs(b))),
            ours[source[0]][source[1]],
            theirs[group][slot],
        )


def test_only_matrices_decay():
    boxed = boxed_params(decoder(True))
    params = nn.unbox(boxed)
    for config in (AdamWConfig(warmup_steps=0, weight_decay=1.0), MuonConfig(warmup_steps=0, weight_decay=1.0)):
        tx = config.make(10, names_of(boxed))
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(lambda g, p, tx=tx: tx.update(g, tx.init(p), p))(zero, params)
        moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
        expected = jax.tree.map(
            lambda names, p: matrix_axes(names) is not None and bool(jnp.any(p != 0)),
            names_of(boxed),
            params,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        assert moved == expected


@pytest.mark.parametrize('make', [AdamWConfig, MuonConfig])
def test_frozen_parameters_stay_and_count_in_no_norm(make):
    boxed = boxed_params(decoder(True))
    params = nn.unbox(boxed)
    gradient = jax.tree.map(jnp.ones_like, params)
    config = make(warmup_steps=0, weight_decay=1.0, frozen=('body', 'final_norm'))
    tx = config.make(10, names_of(boxed))
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(gradient, params)
    moved = {name: any(bool(jnp.any(u != 0)) for u in jax.tree.leaves(tree)) for name, tree in updates.items()}
    assert moved == {name: name not in ('body', 'final_norm') for name in moved} and moved['read_out']
    matrices = dataclasses.replace(config, frozen=('mixer', 'feed_forward')).make(10, names_of(boxed))
    updates, _ = jax.jit(lambda g, p: matrices.update(g, matrices.init(p), p))(gradient, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        keys = {entry.key for entry in path}
        assert bool(jnp.any(leaf != 0)) == (not keys & {'mixer', 'feed_forward'}), keys


def test_a_frozen_name_that_no_parameter_has_is_an_error():
    with pytest.raises(ValueError, match="optimizer.frozen: no parameter 'bodi'; did you mean 'body'?"):
        AdamWConfig(frozen=('bodi',)).make(10, names_of(boxed_params(decoder(True))))


def test_schedules_warm_up_and_end_where_they_say():
    cosine = AdamWConfig(peak_lr=1.0, warmup_steps=10, end_lr_ratio=0.1).learning_rate(100)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10), cosine(100)], [0, 0.5, 1, 0.1], atol=1e-6)
    late = AdamWConfig(peak_lr=1.0, warmup_steps=10, schedule='constant_then_decay').learning_rate(100)
    np.testing.assert_allclose([late(10), late(80), late(90), late(100)], [1, 1, 0.55, 0.1], atol=1e-6)


def test_the_gradient_is_clipped():
    tx = AdamWConfig(clip_norm=1.0, warmup_steps=0).make(10, {'w': ('embed', 'mlp')})
    params = {'w': jnp.ones((2, 2))}
    big, _ = tx.update({'w': 1e3 * jnp.ones((2, 2))}, tx.init(params), params)
    small, _ = tx.update({'w': 0.5 * jnp.ones((2, 2))}, tx.init(params), params)
    np.testing.assert_allclose(big['w'], small['w'], rtol=1e-5)
    assert isinstance(tx, optax.GradientTransformation)


@pytest.mark.parametrize('field, value', [('schedule', 'linear'), ('peak_lr', 0.0), ('warmup_steps', -1)])
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f'{field}='):
        AdamWConfig(**{field: value})
