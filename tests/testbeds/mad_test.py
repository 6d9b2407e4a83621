"""MAD: layouts of the six tasks, exact look-ups, floors against enumeration, chances, macro accuracy."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.mad import MAD, TASKS, recall_floor
from jattn.testbeds.mad_tasks import Sizes, fixed_map
from tests.testbeds.draws import draw, within

SMALL = {name: MAD(task=name).tiny() for name in TASKS} | {
    'noisy_memorization': MAD(task='memorization', vocabulary=20, tokens=12, noise=0.3, noise_vocabulary=3),
    'noisy_compression': MAD(task='compression', vocabulary=12, tokens=8, noise=0.3, noise_vocabulary=3),
    'longest_keys': MAD(task='fuzzy_recall', vocabulary=9, tokens=24, motif=2, longest_keys=True),
    'fuzzy_of_three': MAD(task='fuzzy_recall', vocabulary=12, tokens=40),
}
ROWS = 300


def _score(task, batch):
    said = task.baselines(batch)
    return task.metrics(said['look_up'], batch), task.metrics(said['chance'], batch)['loss'], said['chance'][0]


score = jax.jit(_score, static_argnums=0)
metrics_of = jax.jit(lambda task, outputs, batch: task.metrics(outputs, batch), static_argnums=0)


@pytest.fixture(scope='module', params=[name for name in SMALL if name != 'fuzzy_of_three'])
def drawn(request):
    task = SMALL[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def motifs(row, sizes):
    """The runs of keys and of values of a row without pads and noise: [(key, value), ...]."""
    runs = []
    for is_value, ids in itertools.groupby([t for t in row if t < sizes.plain], lambda t: t >= sizes.keys):
        runs.append((is_value, tuple(ids)))
    assert [is_value for is_value, _ in runs] == [False, True] * (len(runs) // 2)
    return [(key, value) for (_, key), (_, value) in zip(runs[::2], runs[1::2])]


def test_look_up_is_right_and_guessing_is_chance(drawn):
    task, batch = drawn
    facts, (look_up, chance, legal) = task.facts(), score(task, batch)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.inputs.min() >= 0 and batch.inputs.max() < task.input_size
    for name in ('loss', 'accuracy', 'sequence_accuracy', 'macro_accuracy'):
        assert float(look_up[name].value()) == (0 if name == 'loss' else 1), name
    assert facts['look_up'] == 0
    # Where noise hides some ids of compression, the share of its sure answer is random.
    error = 0.02 if task.sizes.noise and task.task == 'compression' else 1e-5
    assert float(chance.value()) == pytest.approx(facts['chance'], rel=error)
    rng = np.random.default_rng(0)
    guess = np.argmax(rng.uniform(size=(*batch.inputs.shape, task.output_size)) * (np.asarray(legal) > -1), axis=-1)
    right = (guess == batch.targets) * batch.mask
    residual = right.sum(axis=1) - facts['chance_accuracy'] * batch.mask.sum(axis=1)
    assert within(residual, 0)


@pytest.mark.parametrize(
    'name', ['in_context_recall', 'noisy_recall', 'longest_keys', 'fuzzy_recall', 'fuzzy_of_three']
)
def test_recall_answers_the_values_of_keys_seen_before_and_of_the_last(name):
    task = SMALL[name]
    batch, sizes = jax.tree.map(np.asarray, draw(task, jax.random.key(1), 200)), task.sizes
    key_sizes, value_sizes = set(), set()
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        row = [*inputs.tolist(), int(targets[-1])]
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        pairs, book, expected = motifs(row, sizes), {}, []
        for number, (key, value) in enumerate(pairs):
            assert len(set(key)) == len(key) and len(set(value)) == len(value)
            assert book.setdefault(key, value) == value
            is_answer = key in [k for k, _ in pairs[:number]]
            assert is_answer or number < len(pairs) - 1, 'the last key was shown'
            expected += [0] * len(key) + [int(is_answer)] * len(value)
            key_sizes.add(len(key))
            value_sizes.add(len(value))
        tokens = [place for place, token in enumerate(row) if token < sizes.plain]
        np.testing.assert_array_equal(np.flatnonzero(mask) + 1, [p for p, a in zip(tokens, expected) if a])
        if task.task == 'fuzzy_recall':
            assert tokens == list(range(tokens[0], len(row))) and all(
                t == sizes.vocabulary - 1 for t in row[: tokens[0]]
            )
    longest = sizes.motif or 1
    assert key_sizes == ({longest} if task.longest_keys else set(range(1, longest + 1)))
    assert value_sizes == set(range(1, longest + 1))


def test_noise_takes_two_ids_and_never_every_pair():
    task = MAD(task='noisy_recall', vocabulary=10, tokens=10, noise_vocabulary=2, noise=0.6)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(2), 4000))
    is_noise = (batch.inputs[:, :8] >= 8).reshape(-1, 4, 2)
    assert np.all(is_noise[:, :, 0] == is_noise[:, :, 1]) and np.all(~is_noise[:, :, 0].all(axis=1))
    assert set(np.unique(batch.inputs[:, :8])) == set(range(10)) and np.all(batch.inputs[:, 8] < 4)
    for place in range(4):
        assert within(is_noise[:, place, 0], 0.6 * 3 / 4)
    first = batch.inputs[~is_noise[:, 0, 0], 0]
    assert all(within(first == name, 1 / 4) for name in range(4))
    # The last key is one of the different keys of the row, all equally likely.
    shown = [np.unique(row[:8:2][row[:8:2] < 4]) for row in batch.inputs]
    assert within([(row[8] == keys[0]) - 1 / len(keys) for row, keys in zip(batch.inputs, shown)], 0)
    assert all(row[8] in keys for row, keys in zip(batch.inputs, shown))


def enumerated_floor(sizes):
    """The mean conditional entropy of the tokens after the first, from the law of all rows, enumerated."""
    pairs, keys, values = sizes.tokens // 2 - 1, sizes.keys, sizes.plain - sizes.keys
    law = collections.Counter()
    noise_pairs = list(itertools.product(range(max(sizes.noise_vocabulary or 0, 1)), repeat=2))
    for sure, hits in itertools.product(range(pairs), itertools.product([False, True], repeat=pairs)):
        hit = [h and i != sure for i, h in enumerate(hits)]
        weight = np.prod([sizes.noise if h else 1 - sizes.noise for h in hits]) / pairs
        for names in itertools.product(range(keys), repeat=pairs):
            for book in itertools.product(range(values), repeat=keys):
                shown = sorted({name for name, h in zip(names, hit) if not h})
                parts = [[('n', *n) for n in noise_pairs] if h else [(k, book[k])] for k, h in zip(names, hit)]
                rows = list(itertools.product(*parts))
                for row, last in itertools.product(rows, shown):
                    p = weight / (keys**pairs * values**keys * len(rows) * len(shown))
                    law[(*row, (last, book[last]))] += p
    entropy = lambda counter: -sum(p * math.log(p) for p in counter.values() if p > 0)
    first = collections.Counter()
    for row, p in law.items():
        first[row[0][:2] if row[0][0] == 'n' else row[0][0]] += p
    return (entropy(law) - entropy(first)) / (sizes.tokens - 1)


@pytest.mark.parametrize(
    'sizes',
    [
        Sizes(vocabulary=4, tokens=8, noise=0.0),
        Sizes(vocabulary=5, tokens=6, noise=0.0),
        Sizes(vocabulary=6, tokens=8, noise=0.3, noise_vocabulary=2),
    ],
)
def test_the_floor_of_all_next_tokens_is_that_of_all_rows_enumerated(sizes):
    assert recall_floor(sizes) == pytest.approx(enumerated_floor(sizes), rel=1e-9)


def test_published_sizes_have_the_published_figures():
    facts = {name: MAD(task=name).facts() for name in TASKS}
    seen = 8 * (1 - (7 / 8) ** 63)
    assert facts['in_context_recall']['all_floor'] == pytest.approx((63 + seen) * math.log(8) / 127, abs=2e-6)
    assert round(facts['in_context_recall']['all_floor'], 2) == 1.16
    for name in ('in_context_recall', 'noisy_recall', 'fuzzy_recall'):
        assert facts[name]['chance_accuracy'] == 1 / 8
    assert facts['selective_copying']['chance_accuracy'] == 1 / 14 and facts['selective_copying']['blanks'] == 223
    assert facts['memorization']['pairs'] == 127
    shapes = {name: jax.eval_shape(lambda key, n=name: MAD(task=n).sample(key, 1), jax.random.key(0)) for name in TASKS}
    shapes = {name: batch.inputs.shape[1] for name, batch in shapes.items()}
    assert shapes['in_context_recall'] == shapes['noisy_recall'] == 127
    assert (shapes['fuzzy_recall'], shapes['selective_copying'], shapes['memorization']) == (128, 256, 32)
    assert shapes['compression'] == 32 + 32


def test_selective_copying_has_its_blanks_and_uniform_places():
    batch = jax.tree.map(np.asarray, draw(MAD(task='selective_copying'), jax.random.key(0), 20))
    assert np.all((batch.inputs[:, :239] == 14).sum(axis=1) == 223) and np.all(batch.inputs[:, 239] == 15)
    assert np.all(batch.inputs[:, 240:] == 14) and np.all(batch.mask.sum(axis=1) == 16) and batch.mask[:, 240:].all()
    small = jax.tree.map(np.asarray, draw(SMALL['selective_copying'], jax.random.key(0), 4000))
    for place in range(12):
        assert within(small.inputs[:, place] < 6, 3 / 12)
    assert small.inputs[:, 11].min() < 6, 'an id may stand last'


def test_compression_asks_for_every_clean_place_by_its_own_id():
    batch = jax.tree.map(np.asarray, draw(SMALL['noisy_compression'], jax.random.key(0), 2000))
    shown, asked = batch.inputs[:, :8], batch.mask[:, 8:]
    np.testing.assert_array_equal(batch.inputs[:, 8:], np.tile(12 + np.arange(8), (2000, 1)))
    np.testing.assert_array_equal(asked, (shown < 8) | (shown == 11))
    np.testing.assert_array_equal(batch.targets[:, 8:], shown * (asked > 0))
    assert np.all(shown[:, -1] == 11) and np.all(batch.mask[:, :8] == 0) and within(asked[:, 0], 0.7)


def test_memorization_asks_one_map_of_different_values():
    sizes = MAD(task='memorization').sizes
    book = fixed_map(sizes)
    assert len(set(book.tolist())) == 127 and book.min() >= 127 and book.max() <= 254
    batch = jax.tree.map(np.asarray, draw(MAD(task='memorization'), jax.random.key(0), 100))
    np.testing.assert_array_equal(batch.targets[:, 1::2], book[batch.inputs[:, ::2]])
    assert np.all(batch.inputs[:, 1::2] == 255) and np.all(batch.mask[:, 1::2] == 1) and np.all(batch.mask[:, ::2] == 0)


def test_training_counts_all_next_tokens_or_the_answers():
    batch = draw(SMALL['in_context_recall'], jax.random.key(0), 8)
    outputs = jnp.zeros((8, 15, 8))
    assert float(SMALL['in_context_recall'].loss(outputs, batch).count) == 8 * 15
    answers = MAD(task='in_context_recall', vocabulary=8, tokens=16, scored='answers')
    assert float(answers.loss(outputs, batch).count) == float(batch.mask.sum()) < 8 * 15


def test_macro_accuracy_weighs_classes_alike_and_micro_answers():
    task = SMALL['compression']
    batch = draw(task, jax.random.key(0), 50)
    always = jnp.broadcast_to(jax.nn.one_hot(7, 8), (50, 16, 8))  # the compression id: right once a row
    metrics = metrics_of(task, always, batch)
    assert float(metrics['accuracy'].value()) == pytest.approx(1 / 8)
    assert float(metrics['macro_accuracy'].value()) == pytest.approx(1 / 8)  # one of the 7 + 1 classes
    first = metrics_of(task, jnp.broadcast_to(jax.nn.one_hot(0, 8), (50, 16, 8)), batch)
    zeros = float(jnp.sum((batch.targets == 0) * batch.mask))
    assert float(first['accuracy'].value()) == pytest.approx(zeros / 400) and zeros != 50
    assert float(first['macro_accuracy'].value()) == pytest.approx(1 / 8)
    assert first['accuracy_by_class'].value().tolist() == [1.0] + [0.0] * 7


def test_a_tiny_copy_keeps_the_choices():
    for name in TASKS:
        assert MAD(task=name).tiny().sizes.tokens < MAD(task=name).sizes.tokens
    tiny = MAD(task='memorization', vocabulary=512, noise=0.5, noise_vocabulary=32).tiny()
    assert (tiny.sizes.noise, tiny.sizes.noise_vocabulary, tiny.sizes.keys) == (0.5, 2, 7)
    fuzzy = MAD(task='fuzzy_recall', longest_keys=True, scored='answers').tiny()
    assert fuzzy.longest_keys and fuzzy.scored == 'answers'


@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_same_key_same_batch_under_jit_and_vmap(name):
    task, keys = SMALL[name], jax.random.split(jax.random.key(4), 2)
    rows = jax.jit(jax.vmap(lambda key: task.sample(key, ROWS)))(keys)
    expected = draw(task, keys[1], ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), rows, expected)
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(task='compresion'), "task='compresion' is unknown"),
        (dict(copies=3), 'in_context_recall: copies=3 is no size of this task'),
        (dict(task='fuzzy_recall', noise=0.1), r'noise=0.1 is no size of this task'),
        (dict(longest_keys=True), 'longest_keys=True is for fuzzy_recall'),
        (dict(task='memorization', scored='all'), "scored='all' must be one of answers"),
        (dict(scored='some'), "scored='some' must be one of all, answers"),
        (dict(noise=0.2), r'noise=0.2 must lie in 0\.\.1, 1 excluded, and needs noise ids: noise_vocabulary=0'),
        (dict(noise_vocabulary=16), 'vocabulary=16 leaves 0 plain ids, too few'),
        (dict(task='fuzzy_recall', motif=9), 'vocabulary=16 leaves 15 plain ids, too few'),
        (dict(task='fuzzy_recall', vocabulary=128, motif=6), 'motif=6 of 63 key ids has more keys than fit'),
        (dict(tokens=7), 'tokens=7 must be even and at least 4'),
        (dict(task='fuzzy_recall', tokens=10), 'tokens=10 must be even and at least 12'),
        (dict(task='selective_copying', tokens=32), 'tokens=32 must be at least 33'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MAD(**fields)
