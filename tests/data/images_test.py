"""Sets of images, read from small files of the same form."""

import numpy as np
import pytest

from jattn.data import FashionMiniConfig, MNISTConfig, OmniglotConfig
from jattn.data.corpus import TEST, TRAIN, VALIDATION


def images(count, side=28):
    return np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)


def test_the_last_training_images_of_mnist_are_its_validation_split(tmp_path):
    x, y = images(12), np.arange(12) % 10
    np.savez(tmp_path / 'digits.npz', x_train=x[:9], y_train=y[:9], x_test=x[9:], y_test=y[9:])
    config = MNISTConfig(path=str(tmp_path / 'digits.npz'), validation=2)
    assert [len(config.rows(split)) for split in (TRAIN, VALIDATION, TEST)] == [7, 2, 3]
    row = config.rows(VALIDATION)[0]
    np.testing.assert_allclose(row.inputs[..., 0] * 255, x[7], atol=1e-4)
    assert row.targets == y[7] and row.inputs.shape == (28, 28, 1)
    with pytest.raises(ValueError, match='data.validation=9 leaves none of the 9 training images'):
        MNISTConfig(path=str(tmp_path / 'digits.npz'), validation=9).rows(TRAIN)


def test_each_class_of_fashion_has_six_one_and_two_ninths(tmp_path):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 9))
    np.savez(tmp_path / 'clothes.npz', x=images(90), y=labels)
    config = FashionMiniConfig(path=str(tmp_path / 'clothes.npz'))
    for split, of_class in ((TRAIN, 6), (VALIDATION, 1), (TEST, 2)):
        assert np.bincount(config.rows(split).labels).tolist() == [of_class] * 10
    last = np.flatnonzero(labels == 3)[-1]
    test = config.rows(TEST)
    np.testing.assert_allclose(test.inputs[test.labels == 3][-1][..., 0] * 255, images(90)[last], atol=1e-4)


def test_omniglot_is_unpacked_padded_shrunk_and_split_by_drawers(tmp_path):
    drawn = images(40, 105) > 200
    bits, characters = np.packbits(drawn.reshape(40, -1), axis=1), np.repeat([0, 135], 20)
    np.savez(tmp_path / 'characters.npz', bits_small1=bits, char_small1=characters)
    config = OmniglotConfig(path=str(tmp_path / 'characters.npz'), shrink=1)
    assert [len(config.rows(split)) for split in (TRAIN, VALIDATION, TEST)] == [28, 6, 6]
    image = config.rows(VALIDATION)[0].inputs[..., 0]
    assert image.shape == (112, 112) and image.sum() == drawn[14].sum()
    np.testing.assert_array_equal(image[3:108, 3:108], drawn[14])
    small = OmniglotConfig(path=config.path, shrink=4).rows(VALIDATION)[0].inputs[..., 0]
    np.testing.assert_allclose(small[2, 5], image[8:12, 20:24].mean(), atol=1e-6)


CONTENT = {
    'no_npz': (MNISTConfig, None, 'must be an .npz file with x_train, y_train, x_test, y_test'),
    'other_names': (FashionMiniConfig, dict(x=images(3)), 'must be an .npz file with x, y'),
    'label': (FashionMiniConfig, dict(x=images(9), y=np.full(9, 10)), r'every label must lie in 0\.\.9'),
    'empty_split': (FashionMiniConfig, dict(x=images(1), y=np.zeros(1, int)), 'has no rows for the test split'),
    'size': (OmniglotConfig, dict(bits_small1=np.zeros((2, 8), np.uint8), char_small1=[0, 1]), 'images of 105 x 105'),
}


@pytest.mark.parametrize('name', CONTENT)
def test_a_file_of_another_kind_is_named(name, tmp_path):
    config, arrays, message = CONTENT[name]
    path = tmp_path / 'file.npz'
    path.write_bytes(b'text') if arrays is None else np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f'data.path={path}: .*{message}'):
        config(path=str(path)).rows(TEST)


BAD = {
    'validation': (MNISTConfig, dict(validation=0), 'validation=0 must be at least 1'),
    'part': (OmniglotConfig, dict(part='large'), "part='large' must be one of small1, small2"),
    'shrink': (OmniglotConfig, dict(shrink=5), 'shrink=5 must divide 112'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_fields_are_refused_by_name(name):
    config, fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        config(**fields)
