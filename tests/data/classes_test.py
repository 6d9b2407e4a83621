"""Labelled rows: padding, splits, facts, what a model must give, and what every set does without a file."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data import CORPORA, ClassCorpus, MNISTConfig
from jattn.data.classes import ClassRows
from jattn.data.corpus import TRAIN

SETS = {name: corpus.tiny() for name, corpus in CORPORA.items() if isinstance(corpus, ClassCorpus)}


@pytest.mark.parametrize('name', SETS)
def test_without_a_file_every_split_has_rows_of_the_models_sizes(name):
    corpus = SETS[name]
    for split in (TRAIN, *corpus.splits):
        rows = corpus.rows(split)
        assert set(rows.labels.tolist()) == set(range(corpus.output_size)), split
        assert rows.labels.dtype == np.int32 and np.all(np.isfinite(rows.inputs))
        if corpus.kind == 'discrete':
            assert rows.inputs.dtype == np.int32 and 0 <= rows.inputs.min() <= rows.inputs.max() < corpus.input_size
        else:
            assert rows.inputs.dtype == np.float32 and rows.inputs.shape[-1] == corpus.input_size
        if rows.lengths is not None:
            assert rows.lengths.min() >= 1 and rows.lengths.max() <= rows.tokens


@pytest.mark.parametrize('name', SETS)
def test_splits_share_no_row(name):
    corpus = SETS[name]
    splits = [{row.tobytes() for row in corpus.rows(split).inputs} for split in (TRAIN, *corpus.splits)]
    if corpus.kind == 'continuous':  # two drawn texts may be the same
        assert sum(map(len, splits)) == len(set.union(*splits))
    assert len({corpus.rows(split).fingerprint() for split in (TRAIN, *corpus.splits)}) == len(splits)


@pytest.mark.parametrize('name', SETS)
def test_the_majoritys_accuracy_is_that_of_a_constant_guess(name):
    corpus = SETS[name]
    batches = corpus.eval_batches(batch=32, batches=1000)
    most = np.bincount(corpus.rows(TRAIN).labels, minlength=corpus.output_size).argmax()
    right = sum(float(np.sum(batch.mask * (batch.targets == most))) for batch in batches)
    count = sum(float(batch.mask.sum()) for batch in batches)
    assert count == len(corpus.rows(corpus.held_out))
    assert corpus.facts()['majority_accuracy'] == pytest.approx(right / count)


def test_rows_are_padded_with_segment_0_and_cut_at_their_end():
    rows = ClassRows.of([np.ones((2, 3)), 2 * np.ones((5, 3))], [0, 1], tokens=4)
    first, second = rows[0], rows[1]
    assert first.segments.tolist() == [1, 1, 0, 0] and not np.any(first.inputs[2:])
    assert second.segments.tolist() == [1, 1, 1, 1] and second.inputs.shape == (4, 3)
    picked = rows.pick(np.array([1]))
    assert picked.lengths.tolist() == [4] and picked.labels.tolist() == [1]
    assert ClassRows(np.ones((1, 2, 3)), np.zeros(1, np.int32))[0].segments is None


def test_padding_of_the_last_evaluation_batch_does_not_count():
    corpus = MNISTConfig()
    batches = corpus.eval_batches(batch=16, batches=1000)
    assert [int(batch.mask.sum()) for batch in batches] == [16, 16, 16, 2]
    metrics = jax.jit(corpus.metrics)
    outputs = np.asarray(np.eye(10, dtype=np.float32)[batches[-1].targets])
    found = metrics(outputs, batches[-1])
    assert float(found['accuracy'].total) == float(found['accuracy'].count) == 2
    assert float(metrics(0 * outputs, batches[-1])['loss'].value()) == pytest.approx(math.log(10), rel=1e-6)


def test_outputs_of_every_token_are_refused():
    corpus = MNISTConfig()
    (batch,) = corpus.eval_batches(batch=4, batches=1)
    with pytest.raises(ValueError, match='MNISTConfig has a class a row, but .* shape .4, 7, 10.: give it an end with'):
        corpus.loss(jnp.zeros((4, 7, 10)), batch)


def test_training_batches_are_endless_and_resume():
    corpus = SETS['fsdd']
    first, second = (corpus.train_batches(16, seed=0) for _ in range(2))
    for _ in range(len(corpus.rows(TRAIN)) // 16 + 2):
        next(first)
    second.position = first.position
    batch = next(first)
    jax.tree.map(np.testing.assert_array_equal, batch, next(second))
    assert batch.inputs.shape == (16, 40, 16) and batch.segments.shape == (16, 40)
    assert batch.targets.shape == batch.mask.shape == (16,)


def test_a_fingerprint_knows_inputs_labels_and_lengths():
    rows = ClassRows.of([np.ones((2, 3)), np.ones((3, 3))], [0, 1], tokens=4)
    others = [
        ClassRows.of([np.ones((2, 3)), np.ones((3, 3))], [1, 1], tokens=4),
        ClassRows(rows.inputs, rows.labels, np.array([3, 3])),
        ClassRows(rows.inputs, rows.labels),
        ClassRows(2 * rows.inputs, rows.labels, rows.lengths),
    ]
    assert len({own.fingerprint() for own in (rows, *others)}) == 5


@pytest.mark.parametrize('name', SETS)
def test_a_missing_file_names_the_set_and_where_it_is_from(name, tmp_path):
    corpus = type(SETS[name])(path=str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match=r'data.path=.*nowhere: no .*; needed is .{20}'):
        corpus.rows(TRAIN)


@pytest.mark.parametrize('name', SETS)
def test_a_split_that_evaluation_cannot_read_is_refused(name):
    with pytest.raises(ValueError, match=f"split='train' must be one of {', '.join(SETS[name].splits)}"):
        type(SETS[name])(split='train')
