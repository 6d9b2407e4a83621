"""Text as packed rows: every byte once, positions and targets right, the same batches for any number of processes."""

import gzip
import json

import numpy as np
import pytest

from jattn.data.corpus import TRAIN, VALIDATION
from jattn.data.packing import BatchIterator, PackedRows
from jattn.data.text import TextConfig

DOCUMENTS = [b'first document', b'2nd', b'', b'the third one is longer than a row', b'x']


def test_rows_hold_every_byte_once_and_in_order():
    rows = PackedRows.of(DOCUMENTS, tokens=8)
    stream = np.concatenate([row.inputs[row.segments > 0] for row in (rows[i] for i in range(len(rows)))])
    assert bytes(stream.astype(np.uint8)) == b''.join(DOCUMENTS)


def test_targets_are_the_next_byte_of_the_same_document():
    rows = PackedRows.of(DOCUMENTS, tokens=8)
    text, starts = b''.join(DOCUMENTS), {14, 17, 51}
    for i in range(len(rows)):
        for t in range(8):
            at = i * 8 + t
            counted = at + 1 < len(text) and at + 1 not in starts
            assert rows[i].mask[t] == counted
            if counted:
                assert rows[i].targets[t] == text[at + 1]


@pytest.mark.parametrize('align', [1, 4])
def test_documents_start_at_multiples_of_align_and_positions_count_from_there(align):
    rows = PackedRows.of(DOCUMENTS, tokens=8, align=align)
    for i in range(len(rows)):
        row = rows[i]
        real = row.segments > 0
        starts = np.flatnonzero(real & (row.positions == 0))
        assert np.all(starts % align == 0)
        for segment in np.unique(row.segments[real]):
            inside = np.flatnonzero(row.segments == segment)
            np.testing.assert_array_equal(row.positions[inside], np.arange(len(inside)))
        assert np.all(np.diff(row.segments[real]) >= 0)


def test_a_row_that_begins_inside_a_document_counts_from_zero():
    row = PackedRows.of([b'0123456789'], tokens=4)[1]
    assert row.positions.tolist() == [0, 1, 2, 3] and row.segments.tolist() == [1] * 4


def test_align_must_divide_the_row():
    with pytest.raises(ValueError, match="data.tokens=10 must be a multiple of the mixers' document_align=4"):
        PackedRows.of(DOCUMENTS, tokens=10, align=4)


@pytest.fixture
def rows():
    return PackedRows.of([bytes(range(256)) * 2], tokens=8)


def test_the_global_batch_does_not_depend_on_the_number_of_processes(rows):
    one = BatchIterator(rows, 8, seed=3)
    four = [BatchIterator(rows, 8, seed=3, process=p, processes=4) for p in range(4)]
    for _ in range(20):  # past an epoch
        whole = {bytes(row.tobytes()) for row in next(one).inputs}
        parts = {bytes(row.tobytes()) for it in four for row in next(it).inputs}
        assert whole == parts


def test_a_position_continues_exactly_in_the_middle_of_an_epoch(rows):
    first = BatchIterator(rows, 8, seed=3)
    for _ in range(11):
        next(first)
    position = json.loads(json.dumps(first.position))
    second = BatchIterator(rows, 8, seed=3)
    second.position = position
    for _ in range(10):
        np.testing.assert_array_equal(next(first).inputs, next(second).inputs)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(rows):
    batches = BatchIterator(rows, 8, seed=3)
    epochs = [[int(row[0]) for _ in range(8) for row in next(batches).inputs] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(int(rows[i].inputs[0]) for i in range(64))
    assert epochs[0] != epochs[1]


def test_the_fingerprint_knows_text_cut_batch_and_seed(rows):
    prints = {
        BatchIterator(rows, 8, seed=3).fingerprint,
        BatchIterator(rows, 4, seed=3).fingerprint,
        BatchIterator(rows, 8, seed=4).fingerprint,
        BatchIterator(PackedRows.of([bytes(range(256)) * 2], tokens=16), 8, seed=3).fingerprint,
        BatchIterator(PackedRows.of([bytes(range(255)) + b'!' + bytes(range(256))], tokens=8), 8, seed=3).fingerprint,
    }
    assert len(prints) == 5


def test_too_little_text_is_named(rows):
    with pytest.raises(ValueError, match=r'gives 64 rows of 8 tokens: too few for training.batch=100'):
        BatchIterator(rows, 100, seed=0)
    with pytest.raises(ValueError, match=r'training.batch=9 must be a multiple of the number of processes=2'):
        BatchIterator(rows, 9, seed=0, processes=2)


def test_files_are_split_by_name_and_gz_is_unpacked(tmp_path):
    for i in range(60):
        (tmp_path / f'{i}.txt').write_text(f'plain {i} ' * 20)
    (tmp_path / 'z.txt.gz').write_bytes(gzip.compress(b'packed ' * 50))
    config = TextConfig(path=str(tmp_path), tokens=8, validation_fraction=0.2)
    train, validation = (bytes(config.rows(split).stream) for split in (TRAIN, VALIDATION))
    assert b'packed packed' in train + validation
    for i in range(60):
        assert (f'plain {i} '.encode() in train) != (f'plain {i} '.encode() in validation)
    assert 0.05 < len(validation) / len(train + validation) < 0.4


def test_one_file_is_cut_at_its_end(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'a' * 90 + b'b' * 10)
    config = TextConfig(path=str(tmp_path / 'a.txt'), tokens=2, validation_fraction=0.1)
    assert bytes(config.rows(TRAIN).stream) == b'a' * 90
    assert bytes(config.rows(VALIDATION).stream) == b'b' * 10


def test_evaluation_batches_are_whole_and_the_same_for_any_number_of_processes(tmp_path):
    (tmp_path / 'a.txt').write_bytes(bytes(range(256)) * 4)
    config = TextConfig(path=str(tmp_path / 'a.txt'), tokens=8, validation_fraction=0.25)
    one = config.eval_batches(batch=10, batches=9)
    assert len(one) == 4 and all(batch.inputs.shape == (10, 8) for batch in one)
    assert sum(batch.mask.sum() for batch in one) == 255  # 32 rows, the blank ones masked
    halves = [config.eval_batches(batch=10, batches=9, process=p, processes=2) for p in range(2)]
    for whole, left, right in zip(one, *halves):
        np.testing.assert_array_equal(whole.inputs, np.concatenate([left.inputs, right.inputs]))


def test_the_default_text_is_the_standard_library():
    rows = TextConfig().rows(VALIDATION)
    assert len(rows) > 1000
    assert b'import' in bytes(rows.stream)


@pytest.fixture
def books(tmp_path):
    for name in ('emma', 'dracula', 'ulysses', 'valid_1', 'valid_2'):
        (tmp_path / f'{name}.txt.gz').write_bytes(gzip.compress(f'<{name}>'.encode() * 10))
    (tmp_path / 'README.md').write_text('<readme>')
    return tmp_path


NAMED = {
    'stem': (dict(validation=('emma',)), {'<emma>'}, {'<dracula>', '<ulysses>', '<valid_1>', '<valid_2>', '<readme>'}),
    'whole_name': (dict(validation=('emma.txt.gz',), train=('ulysses',)), {'<emma>'}, {'<ulysses>'}),
    'pattern': (dict(validation=('val*', 'emma'), train=('*.txt.gz',)), {'<emma>', '<valid_1>', '<valid_2>'}, None),
}


@pytest.mark.parametrize('name', NAMED)
def test_named_files_are_held_out_whole(books, name):
    fields, held_out, train = NAMED[name]
    config = TextConfig(path=str(books), tokens=8, **fields)
    found = {split: bytes(config.rows(split).stream).decode() for split in (TRAIN, VALIDATION)}
    titles = {split: {f'{title}>' for title in text.split('>') if title} for split, text in found.items()}
    assert titles[VALIDATION] == held_out
    assert titles[TRAIN] == ({'<dracula>', '<ulysses>'} if train is None else train)
    assert all(found[VALIDATION].count(title) == 10 for title in held_out)


def test_a_name_that_no_file_has_is_an_error_that_says_it(books):
    with pytest.raises(ValueError, match='data.validation=ema matches no file of data.path=/'):
        TextConfig(path=str(books), validation=('emma', 'ema')).rows(TRAIN)
    with pytest.raises(ValueError, match='data.train=ema matches no file'):
        TextConfig(path=str(books), validation=('emma',), train=('ema',)).rows(VALIDATION)
    with pytest.raises(ValueError, match='matches no file of data.path=None, the standard library: give the folder'):
        TextConfig(validation=('emma',)).rows(TRAIN)
    with pytest.raises(ValueError, match='validation=emma names files of a folder, but data.path=.* is a file'):
        TextConfig(path=str(books / 'README.md'), validation=('emma',)).rows(TRAIN)
    with pytest.raises(ValueError, match='train=emma needs validation'):
        TextConfig(train=('emma',))


def test_nothing_is_left_to_train_on_when_all_is_held_out(books):
    with pytest.raises(ValueError, match='no text for the train split'):
        TextConfig(path=str(books), validation=('*',)).rows(TRAIN)
