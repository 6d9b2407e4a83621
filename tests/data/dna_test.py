"""Nucleotides: letters, splits, folds, Markov baselines by counting."""

import gzip
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data.corpus import TRAIN, VALIDATION
from jattn.data.dna import MOTIFS, DnaConfig, encode, make_genome, make_labelled
from jattn.data.markov import markov_bits

FASTA = '>one\nACGTacgt\nNNRA\n>two\nGGGTTTCCCA\n'


def test_letters_are_tokens_and_everything_unknown_is_n():
    assert list(encode(b'ACGTNacgtn')) == [0, 1, 2, 3, 4] * 2
    assert set(encode(bytes(range(256)))) == {0, 1, 2, 3, 4} and list(encode(b'RYx')) == [4, 4, 4]


@pytest.mark.parametrize('ending', ['fa', 'fa.gz'])
def test_a_genome_is_its_records_and_its_last_fifth_is_held_out(tmp_path, ending):
    path = tmp_path / f'genome.{ending}'
    path.write_bytes(gzip.compress(FASTA.encode()) if ending.endswith('gz') else FASTA.encode())
    config = DnaConfig(path=str(path), tokens=4)
    train, held_out = config.rows(TRAIN), config.rows(VALIDATION)
    assert bytes(train.stream) == encode(b'ACGTACGTNNNAGGGTTT') and train.starts.tolist() == [0, 12, 18]
    assert bytes(held_out.stream) == encode(b'CCCA') and held_out.starts.tolist() == [0, 4]
    row = held_out[0]
    assert row.inputs.tolist() == [1, 1, 1, 0] and row.targets.tolist() == [1, 1, 0, 0]
    assert row.mask.tolist() == [1, 1, 1, 0]


def test_metrics_of_the_genome_are_bits_a_base():
    config = DnaConfig(tokens=8)
    batch = config.eval_batches(batch=2, batches=1)[0]
    logits = jnp.zeros((2, 8, 5)).at[..., 4].set(-1e4)  # uniform over A C G T
    metrics = config.metrics(logits, batch)
    assert float(metrics['bits_per_base'].value()) == pytest.approx(config.facts()['uniform_bits_per_base'], rel=1e-6)
    assert float(metrics['loss'].value()) == pytest.approx(math.log(4), rel=1e-6)
    assert 'bits_per_base' not in DnaConfig(task='classify').metrics(jnp.zeros((2, 8, 2)), batch)


def slow_markov_bits(train, held_out, order, letters):
    """The definition, letter by letter."""
    bits, count = 0.0, 0
    for document in held_out:
        for t in range(1, len(document)):
            context = document[max(t - order, 0) : t]
            seen = [
                d[i + len(context)] for d in train for i in range(len(d) - len(context)) if d[i:].startswith(context)
            ]
            bits -= math.log2((seen.count(document[t]) + 1) / (len(seen) + letters))
            count += 1
    return bits / count


@pytest.mark.parametrize('order', [0, 1, 2, 3])
def test_markov_bits_are_those_of_the_definition(order):
    draws = np.random.default_rng(0)
    train = [bytes(draws.integers(0, 3, size).tolist()) for size in (40, 25, 2)]
    held_out = [bytes(draws.integers(0, 3, size).tolist()) for size in (9, 2, 1, 3)]
    expected = slow_markov_bits(train, held_out, order, 3)
    assert markov_bits(train, held_out, order, 3) == pytest.approx(expected, rel=1e-12)


def test_markov_facts_are_exact_and_longer_contexts_see_the_motifs():
    facts = DnaConfig().facts()
    cut = round(0.8 * 50_000)
    genome = encode(make_genome())
    for order in (0, 3, 5):
        assert facts[f'markov_{order}_bits_per_base'] == markov_bits([genome[:cut]], [genome[cut:]], order, 5)
    assert facts['markov_5_bits_per_base'] < facts['markov_3_bits_per_base'] < facts['markov_0_bits_per_base'] - 0.05
    assert abs(facts['markov_0_bits_per_base'] - 2) < 0.005


def test_the_synthetic_genome_holds_a_motif_in_every_48_bases():
    genome = make_genome(4800)
    for start in range(0, 4800, 48):
        assert any(motif in genome[start : start + 48] for motif in MOTIFS)


@pytest.fixture
def table(tmp_path):
    sequences, labels = make_labelled(count=50, bases=20)
    sequences[0] = sequences[0][:13]
    lines = [f'{sequence.decode()}\t{label}' for sequence, label in zip(sequences, labels)]
    path = tmp_path / 'set.tsv.gz'
    path.write_bytes(gzip.compress('\n'.join(['sequence\tlabel', *lines]).encode()))
    return path, sequences, labels


def test_folds_hold_every_sequence_out_once_with_equal_shares_of_the_labels(table):
    path, sequences, _ = table
    held_out = []
    for fold in range(5):
        config = DnaConfig(path=str(path), task='classify', fold=fold)
        train, test = config.rows(TRAIN), config.rows(VALIDATION)
        assert len(train) == 40 and sorted([*train.sequences, *test.sequences]) == sorted(sequences)
        assert test.labels.count(0) == test.labels.count(1) == 5
        assert config.facts() == {'majority_accuracy': 0.5}
        held_out += test.sequences
    assert sorted(held_out) == sorted(sequences)


def test_a_sequence_is_scored_at_its_last_base_alone(table):
    path, sequences, labels = table
    config = DnaConfig(path=str(path), task='classify')
    batch = config.eval_batches(batch=10, batches=1)[0]
    assert batch.inputs.shape == (10, 20) and config.output_size == 2
    for i, sequence in enumerate(config.rows(VALIDATION).sequences):
        end = len(sequence)
        assert bytes(batch.inputs[i, :end].tolist()) == encode(sequence) and not np.any(batch.inputs[i, end:])
        assert np.flatnonzero(batch.mask[i]).tolist() == [end - 1]
        assert batch.targets[i, end - 1] == labels[sequences.index(sequence)]
        assert batch.segments[i].tolist() == [1] * end + [0] * (20 - end)
    right = jnp.asarray(np.eye(2, dtype=np.float32)[batch.targets])
    assert float(config.metrics(right, batch)['accuracy'].value()) == 1
    assert float(config.loss(0 * right, batch).value()) == pytest.approx(math.log(2), rel=1e-6)


def test_synthetic_labels_say_whether_the_motif_is_there():
    sequences, labels = make_labelled()
    assert [MOTIFS[0] in sequence for sequence in sequences] == [bool(label) for label in labels]


def test_training_batches_of_both_tasks_have_their_shapes(table):
    batch = next(DnaConfig(path=str(table[0]), task='classify').train_batches(8, seed=0))
    assert batch.inputs.shape == batch.mask.shape == (8, 20)
    assert next(DnaConfig(tokens=16).train_batches(8, seed=0)).inputs.shape == (8, 16)
    prints = {DnaConfig(task='classify', fold=fold).rows(TRAIN).fingerprint() for fold in range(5)}
    assert len(prints) == 5


BAD = {
    'task': (dict(task='translate'), "task='translate' must be one of lm, classify"),
    'tokens': (dict(tokens=1), 'tokens=1 must be at least 2'),
    'fold': (dict(fold=5), r'fold=5 must lie in 0\.\.4'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_fields_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        DnaConfig(**fields)


CONTENT = {
    'text': ('lm', 'ACGT\n', "is no FASTA file, its first line must begin with '>'"),
    'empty': ('lm', '', 'is no FASTA file'),
    'header_only': ('lm', '>one\n', 'there are no bases in it'),
    'columns': ('classify', 'a\tb\nACGT\t1\n', "must be a table with the columns 'sequence' and 'label'"),
    'no_label': ('classify', 'sequence\tlabel\nACGT\n', "must be a table with the columns 'sequence' and 'label'"),
    'nothing': ('classify', '', "must be a table with the columns 'sequence' and 'label'"),
    'labels': ('classify', 'sequence\tlabel\nACGT\t2\n', 'every label must be 0 or 1'),
    'few': ('classify', 'sequence\tlabel\nACGT\t1\n', 'each label needs at least 5 sequences'),
}


@pytest.mark.parametrize('name', CONTENT)
def test_a_file_of_another_kind_is_named(name, tmp_path):
    task, text, message = CONTENT[name]
    (tmp_path / 'file').write_text(text)
    with pytest.raises(ValueError, match=message):
        DnaConfig(path=str(tmp_path / 'file'), task=task).rows(TRAIN)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match='data.path=nowhere.fa: no such file'):
        DnaConfig(path='nowhere.fa').rows(TRAIN)
