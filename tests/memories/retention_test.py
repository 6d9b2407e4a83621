"""How weights are kept: the law of every retention's parts, what each forgets towards, and the simplex of KL."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.memories import proximal
from jattn.memories.architecture import MLP
from jattn.memories.bias import L2
from jattn.memories.retention import KL, RETENTIONS, Bregman, Decay, ElasticNet, FDivergence, Keep, Lq, RowNorm
from jattn.ops.fast_weights.dual import apply

SHAPES = ((5, 4), (3, 6), (4,))
VARIANTS = {
    'decay_initial': Decay(towards='initial'),
    'lq_initial': Lq(towards='initial'),
    'lq_dual': Lq(form='dual'),
    'lq_dual_initial': Lq(form='dual', towards='initial'),
    'lq_none': Lq(form='none'),
    'kl_initial': KL(towards='initial'),
    'kl_centred': KL(centred=True),
    'elastic_net_smooth': ElasticNet(form='smooth', threshold=0.05),
    'elastic_net_ftrl': ElasticNet(form='ftrl', threshold=0.05),
    'f_divergence_chi2': FDivergence(divergence='chi2'),
    'f_divergence_reverse_kl': FDivergence(divergence='reverse_kl', total=2.0),
}
ALL = RETENTIONS | VARIANTS
SUMS = {
    'kl': lambda n: math.sqrt(n),
    'kl_initial': lambda n: math.sqrt(n),
    'kl_centred': lambda n: 0.0,
    'f_divergence': lambda n: math.sqrt(n),
}
SUMS |= {'f_divergence_chi2': lambda n: math.sqrt(n), 'f_divergence_reverse_kl': lambda n: 2.0}


def memory(seed=0, dtype=np.float64, scale=1.0):
    """Initial weights, and a change."""
    rng = np.random.default_rng(seed)
    draw = lambda size: tuple(jnp.asarray(size * rng.normal(size=shape), dtype) for shape in SHAPES)
    return draw(scale), draw(0.3 * scale)


def slow_of(keep, dtype=np.float64):
    return {name: jnp.full(shape, value, dtype) for name, (shape, value) in keep.slow(SHAPES).items()}


def started(keep):
    """Initial weights, slow parameters, a fresh anchor and a change, in float64."""
    initial, change = memory()
    slow = slow_of(keep)
    return initial, slow, keep.accumulator(initial, slow), change


def close(ours, truth, **tolerance):
    for a, b in zip(ours, truth, strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or dict(rtol=1e-13, atol=1e-14)))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize('name', ALL)
def test_a_chunk_starts_from_the_weights_of_its_anchor(name):
    keep = ALL[name]
    initial, slow, anchor, change = started(keep)
    for _ in range(2):
        parts = keep.parts(anchor, initial, slow)
        zeros = tuple(jnp.zeros_like(w) for w in anchor)
        both = tuple(a + b for a, b in zip(parts.fixed or zeros, parts.fading or zeros))
        close(both, keep.weights(anchor, initial, slow))
        assert parts.slope is None or all(s.shape == () and s > 0 for s in parts.slope)
        anchor = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 2)


@pytest.mark.parametrize('name', ALL)
def test_is_linear_says_whether_the_weights_are_the_anchor(name):
    keep = ALL[name]
    initial, slow, anchor, change = started(keep)
    settled = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 1)

    def equal(ours, truth):
        return all(np.allclose(a, b, atol=1e-9) for a, b in zip(ours, truth, strict=True))

    is_linear = (
        equal(anchor, initial)
        and equal(settled, [0.7 * a + d for a, d in zip(anchor, change)])
        and equal(keep.weights(settled, initial, slow), settled)
    )
    assert keep.is_linear == is_linear


@pytest.mark.parametrize('name', ALL)
def test_without_a_step_and_without_forgetting_the_weights_stay(name):
    keep = ALL[name]
    keep = dataclasses.replace(keep, threshold=0.0) if isinstance(keep, ElasticNet) else keep
    initial, slow, anchor, change = started(keep)
    zeros = tuple(jnp.zeros_like(w) for w in change)
    before = keep.weights(anchor, initial, slow)
    after = keep.weights(keep.settle(anchor, jnp.float64(1), zeros, initial, slow, 16), initial, slow)
    close(after, before, rtol=1e-12, atol=1e-14)
    if keep.is_linear or isinstance(keep, (Decay, ElasticNet, RowNorm)):
        close(before, initial)


@pytest.mark.parametrize('name', ['keep', 'decay', 'lq_none', 'elastic_net', 'elastic_net_smooth'])
def test_a_chunk_of_one_token_is_the_l2_or_elastic_net_step(name):
    keep = ALL[name]
    initial, slow, anchor, change = started(keep)
    settled = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 1)
    threshold = keep.threshold if isinstance(keep, ElasticNet) else 0.0
    smooth = name == 'elastic_net_smooth'
    step = lambda w, d: proximal.elastic_net_step(w, 0.7, d, threshold, smooth=smooth)
    close(keep.weights(settled, initial, slow), map(step, anchor, change))


def test_a_chunk_of_one_token_is_the_step_on_the_simplex_or_the_cube():
    for keep in (KL(), Bregman(), FDivergence(), FDivergence(divergence='chi2'), FDivergence(divergence='reverse_kl')):
        initial, slow, anchor, change = started(keep)
        step = {
            KL: lambda w, d: proximal.kl_step(w, 0.7, d, math.sqrt(w.shape[-1])),
            Bregman: lambda w, d: proximal.bregman_step(w, 0.7, d),
            FDivergence: lambda w, d, of=keep: proximal.f_divergence_step(w, d, math.sqrt(w.shape[-1]), of.divergence),
        }[type(keep)]
        settled = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 1)
        close(keep.weights(settled, initial, slow), map(step, keep.weights(anchor, initial, slow), change))


def test_the_threshold_counts_the_tokens_of_the_chunk():
    keep = ElasticNet(threshold=0.05)
    initial, slow, anchor, change = started(keep)
    settled = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 4)
    close(settled, [proximal.soft_threshold(0.7 * a + d, 0.2) for a, d in zip(anchor, change)])
    accumulated = dataclasses.replace(keep, form='ftrl')
    settled = accumulated.settle(anchor, jnp.float64(0.7), change, initial, slow, 4)
    close(settled, [0.7 * a + d for a, d in zip(anchor, change)])
    close(accumulated.weights(settled, initial, slow), [proximal.soft_threshold(a, 0.05) for a in settled])


@pytest.mark.parametrize('form', ['hard', 'smooth', 'ftrl'])
def test_an_elastic_net_without_a_threshold_is_decay(form):
    keep = ElasticNet(form=form, threshold=0.0)
    initial, slow, anchor, change = started(keep)
    args = anchor, jnp.float64(0.7), change, initial, slow, 4
    close(keep.weights(keep.settle(*args), initial, slow), Decay().settle(*args))


@pytest.mark.parametrize(
    ('name', 'left'),
    [
        ('decay', lambda w: 0 * w),
        ('decay_initial', lambda w: w),
        ('lq_initial', lambda w: w / jnp.sum(w**4) ** (1 / 4)),
        ('lq_dual_initial', lambda w: proximal.lq_dual(proximal.lq_dual_inverse(w, 4.0), 4.0, 1e-6)),
        ('kl_initial', lambda w: math.sqrt(w.shape[-1]) * jax.nn.softmax(w, axis=-1)),
        ('kl', lambda w: jnp.full_like(w, w.shape[-1] ** -0.5)),
        ('kl_centred', lambda w: 0 * w),
        ('bregman', lambda w: jnp.full_like(w, 0.5)),
        ('elastic_net', lambda w: 0 * w),
        ('lq', lambda w: 0 * w),
        ('lq_dual', lambda w: 0 * w),
    ],
)
def test_what_is_left_when_all_is_forgotten(name, left):
    keep = ALL[name]
    initial, slow, anchor, change = started(keep)
    anchor = keep.settle(anchor, jnp.float64(1), change, initial, slow, 1)
    zeros = tuple(jnp.zeros_like(w) for w in change)
    anchor = keep.settle(anchor, jnp.float64(0), zeros, initial, slow, 1)
    close(keep.weights(anchor, initial, slow), map(left, initial), rtol=0, atol=1e-15)


def test_a_decay_per_key_channel_keeps_columns():
    keep = Decay()
    initial, slow, anchor, change = started(keep)
    kept = jnp.array([[1.0, 0.5, 0.0, 0.25]])
    settled = keep.settle(anchor[:1], kept, change[:1], initial[:1], slow, 1)
    np.testing.assert_allclose(settled[0], np.asarray(anchor[0]) * np.asarray(kept) + change[0], rtol=1e-15)


@pytest.mark.parametrize('name', SUMS)
def test_rows_stay_on_the_simplex(name):
    keep = ALL[name]
    initial, slow, anchor, _ = started(keep)
    for seed in range(6):
        change = tuple(5 * d for d in memory(seed + 1)[1])
        anchor = keep.settle(anchor, jnp.float64(0.9), change, initial, slow, 4)
        for w in keep.weights(anchor, initial, slow):
            np.testing.assert_allclose(jnp.sum(w, axis=-1), SUMS[name](w.shape[-1]), rtol=1e-14, atol=1e-14)
            assert name == 'kl_centred' or jnp.all(w >= 0)


def test_the_logits_of_kl_are_the_printed_form():
    keep = KL()
    initial, slow, anchor, _ = started(keep)
    printed = keep.weights(anchor, initial, slow)
    for seed in range(5):
        kept, change = jnp.float64(0.95 - 0.1 * seed), memory(seed + 1)[1]
        anchor = keep.settle(anchor, kept, change, initial, slow, 1)
        printed = tuple(proximal.kl_step(w, kept, d, math.sqrt(w.shape[-1])) for w, d in zip(printed, change))
        close(keep.weights(anchor, initial, slow), printed, rtol=0, atol=1e-15)


@pytest.mark.parametrize('kept', [1.0, 0.7, 0.0])
def test_a_constant_added_to_a_row_of_logits_changes_nothing(kept):
    keep = KL()
    initial, slow, anchor, change = started(keep)
    shifts = [jnp.arange(w.size // w.shape[-1], dtype=w.dtype).reshape(*w.shape[:-1], 1) for w in anchor]
    shifted = tuple(w + 3 * shift - 1 for w, shift in zip(anchor, shifts))
    close(keep.weights(shifted, initial, slow), keep.weights(anchor, initial, slow))
    both = [keep.settle(a, jnp.float64(kept), change, initial, slow, 1) for a in (shifted, anchor)]
    close(*[keep.weights(a, initial, slow) for a in both])


def test_the_kl_divergence_of_weights_is_kl_of_logits_without_decay():
    kl, divergence = KL(), FDivergence(divergence='kl')
    initial, slow, logits, _ = started(kl)
    weights = divergence.accumulator(initial, slow)
    for seed in range(4):
        change = memory(seed + 1)[1]
        logits = kl.settle(logits, jnp.float64(1), change, initial, slow, 4)
        weights = divergence.settle(weights, jnp.float64(1), change, initial, slow, 4)
        close(weights, kl.weights(logits, initial, slow), rtol=1e-12)


def test_uniform_logits_never_part():
    """All hidden units of a network with equal rows have equal gradients: logits must start unequal."""
    keep, network = KL(), MLP(depth=2, expansion=2.0, post='none')
    shapes = network.shapes(3, 3)
    slow = {name: jnp.full(shape, value) for name, (shape, value) in keep.slow(shapes).items()}
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))

    @jax.jit
    def step(anchor):
        def loss(weights):
            prediction = network.forward(lambda layer, x: apply(weights[layer], x), jnp.asarray(k), {})
            return jnp.sum(L2().loss(prediction, jnp.asarray(v)))

        change = jax.tree.map(lambda g: -0.5 * g, jax.grad(loss)(keep.weights(anchor, anchor, slow)))
        return keep.settle(anchor, jnp.float64(0.9), change, anchor, slow, 7)

    def spread(anchor):
        return float(jnp.max(jnp.std(anchor[0], axis=0)))

    uniform, unequal = (tuple(jnp.full(s, 0.0) for s in shapes), tuple(jnp.asarray(rng.normal(size=s)) for s in shapes))
    for _ in range(3):
        uniform, unequal = step(uniform), step(unequal)
    assert spread(uniform) < 1e-15 and float(jnp.max(jnp.abs(uniform[0]))) > 1e-3
    assert spread(unequal) > 0.1


def test_kl_starts_with_rows_that_sum_to_the_root_of_the_inputs_and_learns_the_sum():
    keep = KL()
    initial, slow, anchor, _ = started(keep)
    assert [float(jnp.exp(c)) for c in slow.values()] == pytest.approx([2, math.sqrt(6), 2], rel=1e-14)
    raised = {name: c + math.log(3) for name, c in slow.items()}
    close(keep.weights(anchor, initial, raised), [3 * w for w in keep.weights(anchor, initial, slow)])
    assert all(not RETENTIONS[name].slow(SHAPES) for name in RETENTIONS if name != 'kl')


@pytest.mark.parametrize('form', ['paper', 'dual', 'none'])
def test_at_q_2_lq_is_decay(form):
    keep = Lq(q=2.0, form=form)
    initial, slow, anchor, change = started(keep)
    settled = keep.settle(anchor, jnp.float64(0.7), change, initial, slow, 4)
    close(keep.weights(settled, initial, slow), settled, rtol=1e-6 if form == 'dual' else 1e-13)
    parts = keep.parts(anchor, initial, slow)
    close(parts.slope or [jnp.ones(())] * 3, [jnp.ones(())] * 3)


def test_moneta_starts_at_norm_one():
    keep = Lq()
    initial, slow, anchor, _ = started(keep)
    sizes = [np.linalg.norm(np.ravel(w), 4) for w in initial]
    close(anchor, [w / size for w, size in zip(initial, sizes)])
    close(keep.weights(anchor, initial, slow), anchor)


def test_the_literal_lq_map_turns_the_scale_around_and_the_clamp_bounds_it():
    literal, clamped = Lq(low=1e-6, high=1e6), Lq()
    initial, slow, anchor, _ = started(literal)

    def norms(keep, scale):
        weights = keep.weights(tuple(scale * a for a in anchor), initial, slow)
        return [np.linalg.norm(np.ravel(w), 4) for w in weights]

    for scale in (0.1, 1.0, 10.0):
        assert norms(literal, scale) == pytest.approx([1 / scale] * 3, rel=1e-12)
    assert norms(clamped, 0.1) == pytest.approx([0.1 / 0.3**2] * 3, rel=1e-12)
    assert norms(clamped, 10.0) == pytest.approx([10 / 3**2] * 3, rel=1e-12)


def test_the_dual_lq_map_starts_at_the_initial_weights():
    keep = Lq(form='dual', epsilon=1e-30)
    initial, slow, anchor, _ = started(keep)
    close(keep.weights(anchor, initial, slow), initial, rtol=1e-7)
    smooth = dataclasses.replace(keep, epsilon=1e-6).weights(anchor, initial, slow)
    for ours, truth in zip(smooth, initial):
        large = np.abs(truth) > 0.2 * np.abs(truth).max()
        np.testing.assert_allclose(np.asarray(ours)[large], np.asarray(truth)[large], rtol=0.05)


def test_a_chunk_of_lq_reads_the_map_with_its_factor_frozen():
    keep = Lq()
    initial, slow, anchor, change = started(keep)
    anchor = keep.settle(anchor, jnp.float64(0.6), change, initial, slow, 1)
    parts, kept = keep.parts(anchor, initial, slow), 0.7
    for n, (a, d) in enumerate(zip(anchor, change)):
        factor = np.clip(np.linalg.norm(np.ravel(a), 4), 0.3, 3) ** -2
        np.testing.assert_allclose(kept * parts.fading[n] + parts.slope[n] * d, factor * (kept * a + d), rtol=1e-12)


def test_the_slope_of_the_dual_lq_map_is_right_for_equal_entries_across_the_weight():
    """With entries of one size the Jacobian is a number, but along the weight itself."""
    keep = Lq(form='dual', epsilon=1e-30)
    initial = (jnp.asarray(np.random.default_rng(0).choice([-0.3, 0.3], size=(4, 6))),)
    anchor = keep.accumulator(initial, {})
    along = np.random.default_rng(1).normal(size=(4, 6))
    along -= np.sum(along * initial[0]) / np.sum(np.square(initial[0])) * np.asarray(initial[0])
    _, truth = jax.jvp(lambda *a: keep.weights(a, initial, {})[0], anchor, (jnp.asarray(along),))
    slope = keep.parts(anchor, initial, {}).slope[0]
    np.testing.assert_allclose(slope * along, truth, rtol=1e-9, atol=1e-12)
    assert float(slope) == pytest.approx(math.sqrt(24), rel=1e-12)  # entries^(1 - 2/q)


def test_rows_keep_the_norms_of_the_initial_ones():
    keep = RowNorm()
    initial, slow, anchor, change = started(keep)
    settled = keep.settle(anchor, jnp.float64(1), tuple(5 * d for d in change), initial, slow, 16)
    for w, z, a, d in zip(initial, settled, anchor, change, strict=True):
        np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), jnp.linalg.norm(w, axis=-1), rtol=1e-14)
        moved = np.asarray(a + 5 * d)
        scale = np.asarray(z) / moved
        np.testing.assert_allclose(scale, np.broadcast_to(scale[..., :1], scale.shape), rtol=1e-12)
        assert np.all(scale > 0)


@pytest.mark.parametrize('name', ALL)
def test_everything_is_finite_at_zero_and_far_away_in_float32(name):
    keep = ALL[name]
    slow = slow_of(keep, np.float32)

    @jax.jit
    def run(initial, kept, change, slow):
        def read(initial, kept, change, slow):
            anchor = keep.settle(keep.accumulator(initial, slow), kept, change, initial, slow, 16)
            parts = keep.parts(anchor, initial, slow)
            return keep.weights(anchor, initial, slow), parts.slope or ()

        out, pull = jax.vjp(read, initial, kept, change, slow)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    for start, step in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1e-30, 1e-30), (1.0, 1e10), (1e10, 1.0)):
        initial, _ = memory(0, np.float32, start)
        _, change = memory(1, np.float32, step)
        out, gradients = run(initial, jnp.float32(0.5), change, slow)
        for leaf in jax.tree.leaves((out, gradients)):
            assert leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf)), (start, step)


def test_only_retentions_with_a_decay_gate_depend_on_what_is_kept():
    for name, keep in ALL.items():
        initial, slow, anchor, change = started(keep)
        anchor = keep.settle(anchor, jnp.float64(1), change, initial, slow, 1)
        much, little = (
            keep.weights(keep.settle(anchor, jnp.float64(kept), change, initial, slow, 1), initial, slow)
            for kept in (1.0, 0.2)
        )
        if keep.decays:
            assert not np.allclose(much[0], little[0]), name
    assert [name for name, keep in RETENTIONS.items() if not keep.decays] == ['keep', 'f_divergence', 'row_norm']


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Decay(towards='mean'), r"retention.towards='mean' must be one of zero, initial"),
        (lambda: Lq(q=1.0), r'retention.q=1.0 must be finite and above 1'),
        (lambda: Lq(form='printed'), r"retention.form='printed' must be one of paper, dual, none"),
        (lambda: Lq(low=0.0), r'retention.low=0.0 must be positive and at most retention.high=3.0'),
        (lambda: Lq(epsilon=0.0), r'retention.epsilon=0.0 must be positive'),
        (lambda: ElasticNet(form='soft'), r"retention.form='soft' must be one of hard, smooth, ftrl"),
        (lambda: ElasticNet(threshold=-1.0), r'retention.threshold=-1.0 must be finite and at least 0'),
        (lambda: FDivergence(divergence='js'), r"retention.divergence='js' must be one of kl, chi2, reverse_kl"),
        (lambda: FDivergence(total=0.0), r'retention.total=0.0 must be positive and finite'),
    ],
)
def test_a_wrong_choice_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_holds_every_kind_once():
    assert [type(keep) for keep in RETENTIONS.values()] == [
        Keep, Decay, Lq, KL, ElasticNet, Bregman, FDivergence, RowNorm,
    ]  # fmt: skip
    assert len(set(ALL.values())) == len(ALL)
