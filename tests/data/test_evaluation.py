"""Test data without any training data beside them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from modelzip.data import (
    cifar10,
    cifar10_test,
    fashion_mnist,
    fashion_mnist_test,
    files,
    image_folder_test,
    npz_test,
    sources,
)
from modelzip.errors import DataError, SettingError

from .formats import cifar_tar, idx_file, sha256, webp

real = pytest.mark.skipif(
    not os.environ.get(files.VARIABLE), reason="MODELZIP_DATA names no folder with real data"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    return tmp_path


def alone(splits, *, samples, classes):
    """`splits`, known to have test data of that size and nothing else."""
    assert len(splits.test) == samples
    assert splits.classes == classes
    for data in (splits.train, splits.validation):
        with pytest.raises(DataError, match="set calibration: synthetic"):
            len(data)
    return splits


def test_cifar_needs_no_training_strips(folder, monkeypatch):
    monkeypatch.setitem(sources._CIFAR_COUNTS, "test", 2)
    strip = np.frombuffer(webp(np.full((64, 32, 3), 51, np.uint8)), np.uint8)
    np.savez(folder / "cifar10_webp.npz", test_strip0=strip, test_y=np.array([3, 4], np.uint8))
    splits = alone(cifar10_test(), samples=2, classes=10)
    inputs, label = splits.test[1]
    expected = (0.2 - torch.tensor(sources.RGB_MEAN)) / torch.tensor(sources.RGB_STD)
    assert torch.allclose(inputs[:, 7, 7], expected)
    assert label == 4


def test_cifar_needs_no_training_batch(folder, monkeypatch):
    monkeypatch.setattr(files, "CIFAR_BATCH", 3)
    records = np.zeros((3, 3073), np.uint8)
    records[:, 0] = [7, 8, 9]
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    splits = alone(cifar10_test(), samples=3, classes=10)
    assert splits.test.targets.tolist() == [7, 8, 9]


def test_a_cut_batch_of_cifar_is_refused(folder):
    (folder / "test_batch.bin").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"test_batch.bin does not hold 10000 images"):
        cifar10_test()


def test_a_batch_of_cifar_that_cannot_be_read_is_refused(folder):
    with pytest.raises(DataError, match=r"none.bin cannot be read: .*No such file"):
        files.cifar_batch(folder / "none.bin")


def test_cifar_of_the_archive_is_its_last_batch(folder, monkeypatch):
    monkeypatch.setattr(files, "CIFAR_BATCH", 4)
    path = cifar_tar(folder / "cifar-10-binary.tar.gz", images=4)
    monkeypatch.setattr(sources, "_CIFAR", (sources._CIFAR[0], sha256(path.read_bytes())))
    splits = alone(cifar10_test(), samples=4, classes=10)
    assert torch.equal(splits.test.inputs, cifar10(validation=6).test.inputs)


def test_fashion_mnist_needs_no_training_arrays(folder):
    pixels = np.full((3, 28, 28), 51, np.uint8)
    np.savez(folder / "fashion_mnist.npz", test_x=pixels, test_y=np.arange(3, dtype=np.uint8))
    splits = alone(fashion_mnist_test(), samples=3, classes=10)
    assert splits.test[0][0].shape == (1, 28, 28)
    assert float(splits.test[0][0][0, 0, 0]) == pytest.approx((0.2 - 0.2860) / 0.3530, abs=1e-6)


def test_fashion_mnist_needs_no_training_files(folder, monkeypatch):
    for name, shape, body in (
        ("t10k-images-idx3", (2, 28, 28), bytes(2 * 784)),
        ("t10k-labels-idx1", (2,), bytes([5, 6])),
    ):
        path = folder / f"{name}-ubyte.gz"
        idx_file(path, shape, body)
        monkeypatch.setitem(sources._FASHION_FILES, name, sha256(path.read_bytes()))
    assert alone(fashion_mnist_test(), samples=2, classes=10).test.targets.tolist() == [5, 6]


def test_npz_needs_no_training_arrays_and_is_told_the_classes(tmp_path):
    x = np.ones((4, 1, 2, 2))
    np.savez(tmp_path / "a.npz", test_x=x, test_y=np.array([0, 1, 1, 0]))
    splits = alone(
        npz_test(path=tmp_path / "a.npz", classes=5, mean=(0.5,), std=(0.5,)), samples=4, classes=5
    )
    assert bool((splits.test[0][0] == 1).all())
    with pytest.raises(SettingError, match="classes must be an integer of at least 2, got 0"):
        npz_test(path=tmp_path / "a.npz", classes=0)


def test_image_folder_needs_no_training_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (9, 6)).save(tmp_path / "test" / name / "0.png")
    splits = alone(image_folder_test(path=tmp_path, size=4), samples=2, classes=2)
    assert splits.names == ("cat", "dog")
    assert splits.test[1][0].shape == (3, 4, 4)
    with pytest.raises(SettingError, match="size must be an integer of at least 1, got 0"):
        image_folder_test(path=tmp_path, size=0)


@real
@pytest.mark.parametrize(("whole", "test"), [(fashion_mnist, fashion_mnist_test)])
def test_they_are_the_test_data_of_the_whole(whole, test):
    one, other = whole().test, test().test
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.targets, other.targets)
    assert (one.mean, one.std) == (other.mean, other.std)
