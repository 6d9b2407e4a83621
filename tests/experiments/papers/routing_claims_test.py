"""The rerun of paper 55: the leak, the costs, and what is said of them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.papers.contract import ClaimContext
from experiments.papers.cost import Cost
from experiments.papers.novels import Windows
from experiments.papers.routing import costs, recall, text
from experiments.papers.routing.settings import FROZEN, FULL, LEAKY, LOCAL, ROUTING, SIZES, attentions
from experiments.papers.small_models import Setting, first_rows
from jattn.data import TextConfig
from jattn.models.decoder import DecoderConfig

SMALL = SIZES['small']


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_settings_are_made_and_pairs_stand_outside_of_the_window(size, tmp_path):
    (tmp_path / 'books').mkdir()
    context = ClaimContext('paper', tmp_path, tmp_path)
    for setting in (*text.settings(context, size).values(), *recall.settings(size).values()):
        assert setting.module is not None and setting.steps % setting.steps_per_call == 0
    assert size.layers * size.recall_window < size.recall.tokens
    assert size.recall_clusters * size.recall_members == size.recall.tokens
    assert size.clusters * size.members <= size.tokens


def test_rivals_have_the_same_heads_and_frozen_centroids_do_not_move():
    found = attentions(8, 4, 16)
    assert {mixer.heads for mixer in found.values()} == {4}
    assert found[FROZEN] == dataclasses.replace(found[ROUTING], decay=1.0)
    assert found[ROUTING].causal and not found[LEAKY].causal
    assert found[LOCAL].window == found[ROUTING].window == 8 and found[FULL].window is None


@pytest.mark.parametrize('selection, leaks', [('prefix', False), ('top', True)])
def test_only_the_published_selection_reads_the_future(selection, leaks, tmp_path):
    (tmp_path / 'a.txt').write_bytes(np.random.default_rng(0).integers(0, 256, 200, np.uint8).tobytes())
    mixer = dataclasses.replace(attentions(2, 2, 4)[ROUTING], selection=selection)
    setting = Setting(
        model=DecoderConfig(width=16, layers=1, mixer=(mixer,), feed_forward=None, remat='none'),
        data=Windows(
            text=TextConfig(path=str(tmp_path / 'a.txt'), validation_fraction=0.5), tokens=16, held_out_bytes=32
        ),
        steps=1,
        batch=1,
    )
    rows = first_rows(setting, 1)
    variables = nn.unbox(jax.jit(setting.module.init)(jax.random.key(0), rows.inputs))
    whole, blanked = text.leak(setting, variables, 2, 4)
    assert (abs(whole - blanked) > 1e-3) == leaks


def test_routing_costs_of_the_power_of_one_and_a_half_hold():
    lengths = (2048, 4096, 8192)
    size = dataclasses.replace(SMALL, cost_lengths=lengths)
    tokens = np.array(lengths, float)
    power = lambda n: Cost(lengths, tokens**n, tokens**n)
    names = costs.SELECTIONS.values()
    found = {costs.SOFTMAX: power(2), **{name: power(1.5) for name in names}}
    assert [line.holds for line in costs.lines(found, size)] == [True] * 9
    found |= {name: power(2.2) for name in names}
    holds = [line.holds for line in costs.lines(found, size)]
    assert holds == [True, *[True, False, False, False] * 2]
    made = costs.routing(size, 4096, 'top')
    assert (made.clusters, made.members, made.local_heads) == (64, 64, 0)


def test_lines_compare_what_they_name():
    size = dataclasses.replace(SMALL, seeds=1)
    good = {FULL: [0.98], LOCAL: [0.13], ROUTING: [0.9], FROZEN: [0.6]}
    assert [line.holds for line in recall.lines(good, size)] == [True] * 6
    bad = {FULL: [0.8], LOCAL: [0.5], ROUTING: [0.6], FROZEN: [0.7]}
    assert [line.holds for line in recall.lines(bad, size)] == [False, False, False, False, False, True]
    run = lambda loss, full, blanked: {'loss': loss, 'full': full, 'blanked': blanked}
    found = {LOCAL: run(2.0, 2.0, 2.0), ROUTING: run(1.97, 1.9, 1.9), LEAKY: run(1.9, 1.9, 1.95)}
    assert [line.holds for line in text.lines(found, size)] == [True, True, True]
    found = {LOCAL: run(2.0, 2.0, 2.0), ROUTING: run(2.1, 1.9, 1.95), LEAKY: run(1.9, 1.9, 1.9)}
    assert [line.holds for line in text.lines(found, size)] == [False, False, False]
    assert all(line.holds is None for line in text.missing())
