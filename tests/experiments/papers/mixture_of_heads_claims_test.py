"""The rerun of paper 54: what is compared, and what is said of it."""

import dataclasses

import numpy as np
import pytest

from experiments.papers.contract import ClaimContext
from experiments.papers.cost import Cost
from experiments.papers.mixture_of_heads import conversion, costs, digits, gates, text
from experiments.papers.mixture_of_heads.settings import (
    FOUR,
    FULL,
    MOH_50,
    MOH_75,
    PRINTED,
    SIX,
    SIZES,
    UNBALANCED,
    attentions,
)
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig

SMALL = SIZES['small']
MOH = MixtureOfHeadsConfig(width=32, heads=4, shared=1, active=1)


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_rivals_have_heads_of_one_size_and_as_many_as_their_names_say(size, tmp_path):
    for mixer in attentions(size).values():
        assert dataclasses.replace(mixer, width=size.width).channels == size.width // 8
    used = {name: mixer.heads for name, mixer in attentions(size).items()}
    assert (used[FULL], used[SIX], used[FOUR]) == (8, 6, 4)
    active = {name: attentions(size)[name].shared + attentions(size)[name].active for name in (MOH_75, MOH_50)}
    assert active == {MOH_75: 6, MOH_50: 4}
    (tmp_path / 'books').mkdir()
    (tmp_path / 'mnist').mkdir()
    (tmp_path / 'mnist' / 'mnist_30k_10k.npz').touch()
    context = ClaimContext('paper', tmp_path, tmp_path)
    for settings in (text.settings, digits.settings, conversion.stages):
        for setting in settings(context, size).values():
            assert setting.module is not None and setting.steps % setting.steps_per_call == 0


def test_the_balance_loss_weighs_its_mean_over_layers_and_can_be_left_out(tmp_path):
    found = text.settings(ClaimContext('tiny', tmp_path), SMALL)
    assert found[MOH_75].losses.load_balance == pytest.approx(0.01 / SMALL.layers)
    assert found[UNBALANCED].losses.load_balance == 0
    assert found[UNBALANCED].model == found[MOH_75].model


def test_a_conversion_has_the_parameters_of_the_softmax_decoder_and_routes_by_queries(tmp_path):
    context = ClaimContext('tiny', tmp_path)
    own = conversion.stages(context, SMALL)['query norms'].model.mixer[0]
    assert not own.routers and (own.shared, own.active, own.heads) == (4, 2, 8)
    assert own.head_dim == text.settings(context, SMALL)[FULL].model.mixer[0].head_dim


def test_without_data_lines_are_missing():
    assert all(line.holds is None for line in (*text.missing(), *digits.missing()))


def test_lines_on_text_compare_what_they_name():
    loss = {FULL: 2.0, SIX: 2.02, FOUR: 2.05, MOH_75: 2.005, MOH_50: 2.01, PRINTED: 2.1, UNBALANCED: 2.0}
    even, uneven = np.full((2, 6), 4 / 6), np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]] * 2)
    found = {name: [{'loss': value, 'load': uneven if name == UNBALANCED else even}] for name, value in loss.items()}
    size = dataclasses.replace(SMALL, seeds=1)
    assert [line.holds for line in text.lines(found, size)] == [True] * 6
    loss = loss | {MOH_75: 2.03, MOH_50: 2.045, PRINTED: 2.0}
    found = {name: [{'loss': value, 'load': even}] for name, value in loss.items()}
    assert [line.holds for line in text.lines(found, size)] == [False, False, False, True, False, False]


def test_a_share_of_the_jump_is_counted_from_the_trained_loss():
    tuned = {'query norms': [(3.0, 2.02)], 'softmax': [(2.0, 1.9)], 'new routers': [(2.0, 1.95)]}
    jump, share, fair = conversion.lines(tuned, {FULL: [{'loss': 2.0}]}, SMALL)
    assert jump.measured == pytest.approx(1.0) and share.measured == pytest.approx(0.98)
    assert fair.measured == pytest.approx(0.98 / 1.1) and share.holds and not fair.holds


def test_classes_that_take_other_heads_vary_more_than_shuffled_ones():
    inputs = np.frombuffer(b'ab cd. ef, ' * 20, np.uint8).reshape(4, -1)
    labels = gates.classes(inputs)
    apart = np.concatenate([np.ones((1, *labels.shape, 1)), np.eye(3)[labels][None]], axis=-1)
    assert [line.measured for line in gates.lines(gates.Read(apart, inputs), MOH, 0)] == [1.0, 1.0]
    assert all(line.holds for line in gates.lines(gates.Read(apart, inputs), MOH, 0))
    alike = np.broadcast_to(np.array([1.0, 1.0, 0.0, 0.0]), (1, *labels.shape, 4))
    assert not any(line.holds for line in gates.lines(gates.Read(alike, inputs), MOH, 0))
    np.testing.assert_allclose(gates.load(gates.Read(alike, inputs), MOH), [[1, 0, 0]])


def test_heads_that_are_weighed_cost_as_much_as_all():
    lengths = (2048, 4096)
    power = lambda scale: Cost(lengths, scale * np.array([1.0, 4.0]), np.array([1.0, 4.0]))
    size = dataclasses.replace(SMALL, cost_lengths=lengths)
    found = {FULL: power(1.0), MOH_50: power(1.1), FOUR: power(0.5)}
    assert [line.holds for line in costs.lines(found, size)] == [True] * 4
    found[MOH_50] = power(0.6)
    assert [line.holds for line in costs.lines(found, size)] == [True, True, False, True]
