"""Texts with a class: bytes and words, the files of three sets, their splits."""

import gzip
import itertools
import json

import numpy as np
import pytest

from jattn.data import AGNewsConfig, MoviePolarityConfig, SST2Config
from jattn.data.corpus import TEST, TRAIN, VALIDATION


def text_of(words, row):
    """The words of a vocabulary that a row holds."""
    return [words[token] for token, real in zip(row.inputs, row.segments) if real]


@pytest.fixture
def treebank(tmp_path):
    """Two files packed and one not."""
    texts = {'train': '1 A good , good film\n0 a bad one\n', 'dev': '1 good\n', 'test': '0 an unheard word\n1 é\n'}
    for name, text in texts.items():
        packed = name != 'dev'
        path = tmp_path / f'stsa.binary.{name}{".gz" if packed else ""}'
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return tmp_path


def test_a_row_of_bytes_is_the_text_cut_or_padded(treebank):
    config = SST2Config(path=str(treebank), tokens=12)
    row, short = config.rows(TRAIN)[0], config.rows(TEST)[1]
    assert bytes(row.inputs.tolist()) == b'A good , goo' and row.segments.tolist() == [1] * 12 and row.targets == 1
    assert bytes(short.inputs.tolist()) == 'é'.encode() + bytes(10) and short.segments.tolist() == [1, 1] + [0] * 10
    assert config.input_size == 256


def test_a_row_of_words_knows_the_frequent_words_of_the_training_texts(treebank):
    config = SST2Config(path=str(treebank), unit='words', tokens=5, vocabulary=6)
    assert config.words() == ['<padding>', '<unknown>', 'a', 'good', ',', 'bad'] and config.input_size == 6
    assert text_of(config.words(), config.rows(TRAIN)[0]) == ['a', 'good', ',', 'good', '<unknown>']
    assert config.rows(TEST)[0].inputs.tolist() == [1, 1, 1, 0, 0]
    assert [len(config.rows(split)) for split in (TRAIN, VALIDATION, TEST)] == [2, 1, 2]


def test_sentences_of_reviews_are_shuffled_and_each_is_in_one_split(tmp_path):
    for ending in ('neg', 'pos'):
        lines = '\n'.join(f'{ending} {n} caf\xe9 ' for n in range(50))
        (tmp_path / f'rt-polarity.{ending}').write_bytes((lines + '\n').encode('latin1'))
    config = MoviePolarityConfig(path=str(tmp_path), unit='words', tokens=4)
    found = {}
    for split, count in ((TRAIN, 80), (VALIDATION, 10), (TEST, 10)):
        texts = config.read_texts()[split]
        assert len(config.rows(split)) == len(texts) == count
        assert all(text.startswith(('neg', 'pos')[label]) and text.endswith('café ') for text, label in texts)
        found |= dict(texts)
    assert len(found) == 100
    assert 0 < config.rows(TEST).labels.sum() < 10


def test_whole_reviews_are_split_by_their_fold(tmp_path):
    reviews = [dict(id=str(n), fold=n % 10, label=n % 2, text=f'review {n}') for n in range(20)]
    (tmp_path / 'long_reviews.jsonl.gz').write_bytes(gzip.compress('\n'.join(map(json.dumps, reviews)).encode()))
    texts = MoviePolarityConfig(path=str(tmp_path), whole=True).read_texts()
    assert texts[VALIDATION] == [('review 8', 0), ('review 18', 0)]
    assert texts[TEST] == [('review 9', 1), ('review 19', 1)] and len(texts[TRAIN]) == 16


def test_a_news_row_is_its_title_and_text(tmp_path):
    lines = [f'"{n % 4 + 1}","Title {n}","Text, with ""signs"" {n}"' for n in range(76)]
    (tmp_path / 'test.csv').write_text('\n'.join(lines))
    texts = AGNewsConfig(path=str(tmp_path / 'test.csv')).read_texts()
    assert [len(texts[split]) for split in (TRAIN, VALIDATION, TEST)] == [60, 6, 10]
    for text, topic in itertools.chain(*texts.values()):
        n = int(text.split()[1])
        assert text == f'Title {n} Text, with "signs" {n}' and topic == n % 4


CONTENT = {
    'label': (SST2Config, 'stsa.binary.train', '2 fine\n', 'every line of stsa.binary.train must begin with 0 or 1'),
    'empty': (SST2Config, 'stsa.binary.train', '', 'has no texts for the train split'),
    'review': (MoviePolarityConfig, 'long_reviews.jsonl', '{"text": "a"}', 'must have label, text and fold'),
    'news': (AGNewsConfig, '', '5,a,b\n', 'must be a table of class 1 to 4, title and description'),
}


@pytest.mark.parametrize('name', CONTENT)
def test_a_file_of_another_kind_is_named(name, tmp_path):
    config, file, text, message = CONTENT[name]
    for other in ('stsa.binary.train', 'stsa.binary.dev', 'stsa.binary.test'):
        (tmp_path / other).write_text('0 fine\n')
    (tmp_path / (file or 'test.csv')).write_text(text)
    fields = dict(whole=True) if config is MoviePolarityConfig else {}
    with pytest.raises(ValueError, match=message):
        config(path=str(tmp_path if file else tmp_path / 'test.csv'), **fields).rows(TRAIN)


BAD = {
    'unit': (dict(unit='letters'), "unit='letters' must be one of bytes, words"),
    'tokens': (dict(tokens=1), 'tokens=1 must be at least 2'),
    'vocabulary': (dict(vocabulary=2), 'vocabulary=2 at least 3'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_fields_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SST2Config(**fields)


def test_a_synthetic_text_tells_its_class_by_two_words():
    config = AGNewsConfig(unit='words', tokens=16)
    words = config.words()
    for row in map(config.rows(TEST).__getitem__, range(20)):
        cues = [word for word in text_of(words, row) if word.startswith('class')]
        assert len(cues) == 2 and {cue[:6] for cue in cues} == {f'class{row.targets}'}
    assert np.bincount(config.rows(TEST).labels).tolist() == [15] * 4
