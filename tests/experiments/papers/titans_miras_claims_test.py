"""The reruns of papers 33 and 52: the parts that measure do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import lm_books
from experiments.papers import lengths, small_models, streams
from experiments.papers.miras import books
from experiments.papers.miras import recall as corrupted_recall
from experiments.papers.miras import settings as miras_settings
from experiments.papers.titans import capacity, recall, settings
from jattn.data import SeriesConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall
from jattn.training.optimizer import AdamWConfig


def test_what_is_read_back_is_the_recurrence_of_numpy():
    keys, values = streams.random_pairs(jax.random.key(0), 2, 5, 4)
    answers = streams.read_back(dataclasses.replace(capacity.MOMENTUM, width=4), keys, values, 0.3, 2, 0.8)
    for k, v, answer in zip(*(np.asarray(x, np.float64) for x in (keys, values)), answers):
        weights, surprise = np.zeros((4, 4)), np.zeros((4, 4))
        for _ in range(2):
            for one_k, one_v in zip(k, v):
                surprise = 0.8 * surprise - 0.3 * np.outer(weights @ one_k - one_v, one_k)
                weights = weights + surprise
        np.testing.assert_allclose(answer, k @ weights.T, atol=1e-4)


def test_only_the_counted_pairs_count_in_an_error():
    values = jnp.array([[[3.0, 4.0], [1.0, 0.0]]])
    answers = jnp.array([[[0.0, 0.0], [7.0, 0.0]]])
    assert streams.relative_error(answers, values, jnp.array([[1.0, 0.0]])).tolist() == [1.0]
    assert streams.relative_error(answers, values)[0] == pytest.approx((61 / 26) ** 0.5)


@pytest.mark.parametrize('part', settings.ABLATIONS)
def test_an_ablation_leaves_out_its_part_alone(part):
    full, less = settings.lmm(4), settings.without(part, settings.lmm(4))
    changed = {f.name for f in dataclasses.fields(full) if getattr(full, f.name) != getattr(less, f.name)}
    assert (
        changed
        == {
            'decay': {'retention', 'gates'},
            'momentum': {'learner', 'gates'},
            'convolution': {'recipe'},
            'depth': {'architecture'},
            'persistent tokens': {'persistent'},
        }[part]
    )


def test_l2_is_the_network_of_yaad_with_another_loss():
    yaad, l2 = miras_settings.memory('yaad', 4), miras_settings.memory('l2', 4)
    same = dataclasses.replace(l2, bias=yaad.bias, gates=yaad.gates)
    assert same == yaad and l2.gates.step == yaad.gates.step and l2.gates.decay == yaad.gates.decay


def test_the_order_of_the_parts_is_by_the_loss_they_save():
    size = settings.SIZES['small']
    added = dict(zip(settings.ABLATIONS, (0.5, 0.4, 0.3, 0.2, -0.1)))
    found = {recall.FULL: [dict(loss=1.0, accuracy=0.5)]}
    found |= {f'without {part}': [dict(loss=1 + loss, accuracy=0.4)] for part, loss in added.items()}
    lines = recall.ablation_lines(found, size)
    assert [line.holds for line in lines] == [True, True, True, True, False, True]
    found['without depth'] = [dict(loss=9.0, accuracy=0.1)]
    assert recall.ablation_lines(found, size)[-1].measured == '3 of 4'
    found['without depth'] = [None]
    line = recall.ablation_lines(found, size)[3]
    assert np.isnan(line.measured) and not line.holds


def test_lines_on_corrupted_rows_compare_with_l2():
    size = miras_settings.SIZES['small']
    found = {f'{name}, {kind}': [0.8] for name in size.networks for kind in ('clean', 'corrupted')}
    found['yaad, corrupted'] = [0.85]
    lines = corrupted_recall.lines(found, size)
    assert {line.line.partition('accuracy of ')[2]: line.holds for line in lines if 'l2, on' in line.line} == {
        'yaad minus the same network with l2, on clean rows': True,
        'moneta minus the same network with l2, on clean rows': True,
        'yaad minus the same network with l2, on corrupted rows': True,
        'moneta minus the same network with l2, on corrupted rows': False,
    }


@pytest.mark.slow
def test_language_models_are_trained_once_a_member_and_seed(tmp_path):
    found = books.measure(lm_books.config('tiny'), ['linear_attention'], 2, tmp_path)
    first, second = found['linear_attention']
    assert first != second and all(0 < bits < 12 for bits in (first, second))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['linear_attention_0', 'linear_attention_1']


def test_the_groups_of_language_models_stand_in_their_order():
    names = [name for group in books.ORDER for name in group]
    lines = books.lines({name: [3 - place / 10, 3.01 - place / 10] for place, name in enumerate(names)})
    assert all(line.holds for line in lines) and 'by up to 0.0100' in lines[0].note
    assert len(books.missing()) == len(lines)


TASK = AssociativeRecall(vocabulary=8, tokens=8, pairs=1)


def small_setting(data, **changes):
    return small_models.Setting(
        model=DecoderConfig(width=16, layers=1, mixer=(SoftmaxConfig(heads=2),), feed_forward=None),
        data=data,
        steps=20,
        batch=8,
        optimizer=AdamWConfig(peak_lr=1e-2, warmup_steps=5),
        steps_per_call=10,
        **changes,
    )


def test_equal_keys_train_equal_decoders_and_score_them_on_equal_rows():
    setting = small_setting(TASK)
    said = []
    measure = lambda setting, variables: small_models.score(setting, variables, TASK, 4, 2, jax.random.key(3))
    found = small_models.compare({'a': setting, 'b': setting}, 2, measure, said.append, jax.random.key(0))
    assert found['a'] == found['b'] and found['a'][0] != found['a'][1]
    told = {f'{name}, seed {seed}' for name in 'ab' for seed in range(2)}  # in the order of the threads
    assert {line.split(': loss ')[0] for line in said} == told and len(said) == 4


def test_every_window_counts_once_in_a_forecasts_error():
    data = SeriesConfig(look_back=16, horizon=4, patch=4)
    setting = small_setting(data)
    variables, _ = small_models.train(setting, jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, variables)
    found = small_models.score_rows(setting, zeros)
    assert found['mse'] == pytest.approx(data.facts()['window_mean_mse'], rel=1e-5)


def test_a_curve_is_written_with_its_lengths():
    assert lengths.curve(np.array([[1.0, 0.5]]), (8, 16)) == '1.000 at 8, 0.500 at 16'
