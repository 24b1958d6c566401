import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelzip.data import cifar10, digits, fashion_mnist, files, image_folder, npz, sources
from modelzip.data.checking import check
from modelzip.errors import DataError, MissingExtraError, SettingError

from .formats import cifar_tar, idx_file, sha256, webp

real = pytest.mark.skipif(
    not os.environ.get(files.VARIABLE), reason="MODELZIP_DATA names no folder with real data"
)


def arrays(**changes):
    rng = np.random.default_rng(0)
    found = {
        "train_x": rng.random((40, 3, 4, 4)),
        "train_y": np.arange(40) % 5,
        "test_x": rng.random((10, 3, 4, 4)),
        "test_y": np.arange(10) % 5,
    } | changes
    return {k: v for k, v in found.items() if v is not None}


def test_digits_are_whole_and_in_range():
    splits = digits(validation=100)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1337, 100, 360]
    inputs, targets = splits.train.__getitems__(range(len(splits.train)))
    assert inputs.dtype == torch.float32
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert sorted(set(targets.tolist())) == list(range(10))
    check(splits)


def test_the_seed_moves_validation_and_leaves_test():
    one, two = digits(seed=0), digits(seed=1)
    assert torch.equal(one.test.inputs, two.test.inputs)
    assert not torch.equal(one.validation.inputs, two.validation.inputs)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"the digits data needs scikit-learn: .*\[demo\]"):
        digits()


def test_npz_of_floats(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays())
    splits = npz(path=tmp_path / "a.npz", validation=0.25, limit=20)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [20, 10, 10]
    assert splits.classes == 5
    assert splits.test[3][0].dtype == torch.float32
    assert torch.equal(splits.test[3][0], torch.from_numpy(arrays()["test_x"][3]).float())


def test_npz_of_token_ids_stays_int64(tmp_path: Path):
    ids = np.arange(40 * 6, dtype=np.uint16).reshape(40, 6)
    np.savez(tmp_path / "a.npz", **arrays(train_x=ids, test_x=ids[:10]))
    inputs, _ = npz(path=tmp_path / "a.npz").test[1]
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [6, 7, 8, 9, 10, 11]


def test_npz_of_bytes_is_scaled_and_cropped(tmp_path: Path):
    pixels = np.full((40, 3, 4, 4), 255, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **arrays(train_x=pixels, test_x=pixels[:10]))
    splits = npz(path=tmp_path / "a.npz", crop=4)
    batch, _ = splits.train.__getitems__(range(len(splits.train)))
    assert batch.min() == 0  # padding is in sight somewhere
    assert bool((splits.validation[0][0] == 1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_y": None}, "has no array 'test_y'; it has test_x, train_x, train_y"),
        ({"train_y": np.zeros(40)}, "'train_y' has dtype float64; it must be unsigned"),
        ({"train_y": np.arange(39)}, "there are 40 inputs and 39 labels"),
        ({"test_x": np.zeros((10, 3, 5, 5))}, "all but the first dimension must agree"),
        ({"test_x": np.zeros((10, 3, 4, 4), dtype=int)}, "train_x is torch.float32"),
    ],
)
def test_bad_npz_is_refused(tmp_path: Path, changes, message):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(DataError, match=message):
        npz(path=tmp_path / "a.npz", validation=5)


def folder(root: Path, **splits: str) -> Path:
    for split, names in splits.items():
        for name in names.split():
            for number in range(5):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 6)).save(path)
    return root


def test_image_folder(tmp_path: Path):
    splits = image_folder(path=folder(tmp_path, train="cat dog", test="cat dog"), size=4)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [9, 1, 10]
    assert splits.classes == 2
    assert splits.train[0][0].shape == (3, 4, 4)
    assert {label for _, label in splits.test} == {0, 1}
    check(splits)


def test_image_folder_with_a_class_in_one_half_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="train and test differ in their class folders: cow, dog"):
        image_folder(path=folder(tmp_path, train="cat dog", test="cat cow"))


def test_image_folder_size_is_checked(tmp_path: Path):
    with pytest.raises(SettingError, match="size must be an integer of at least 1, got 0"):
        image_folder(path=tmp_path, size=0)


def test_cifar_from_the_official_archive(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "CIFAR_BATCH", 4)
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    path = cifar_tar(tmp_path / "cifar-10-binary.tar.gz", images=4)
    monkeypatch.setattr(sources, "_CIFAR", (sources._CIFAR[0], sha256(path.read_bytes())))
    splits = cifar10(validation=6, augment=False)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [14, 6, 4]
    expected = (5 / 255 - torch.tensor(sources.RGB_MEAN)) / torch.tensor(sources.RGB_STD)
    assert torch.allclose(splits.test[0][0][:, 7, 7], expected)  # the sixth file is all 5
    assert splits.test[3][1] == 3


def test_cifar_webp_of_another_length_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    strip = np.frombuffer(webp(np.zeros((64, 32, 3), np.uint8)), np.uint8)
    np.savez(tmp_path / "cifar10_webp.npz", train_strip0=strip, train_y=np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="2 train images and 2 labels, not 50000"):
        cifar10()


def test_fashion_mnist_from_the_official_files(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    hashes = {}
    for split, count in (("train", 10), ("t10k", 3)):
        pixels, labels = bytes([51]) * (count * 784), bytes(range(count))
        for name, shape, body in (
            (f"{split}-images-idx3", (count, 28, 28), pixels),
            (f"{split}-labels-idx1", (count,), labels),
        ):
            path = idx_file(tmp_path / f"{name}-ubyte.gz", shape, body)
            hashes[name] = sha256(path.read_bytes())
    monkeypatch.setattr(sources, "_FASHION_FILES", hashes)
    splits = fashion_mnist(validation=2)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [8, 2, 3]
    assert splits.test[2][0].shape == (1, 28, 28)
    assert splits.test[2][1] == 2
    assert splits.test[0][0][0, 0, 0].item() == pytest.approx((0.2 - 0.2860) / 0.3530)


@real
def test_real_fashion_mnist():
    splits = fashion_mnist(limit=1000)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1000, 5000, 10000]
    batch, _ = splits.validation.__getitems__(range(5000))
    assert abs(float(batch.mean())) < 0.02
    assert abs(float(batch.std()) - 1) < 0.02


@real
def test_real_cifar10():
    splits = cifar10(limit=2000)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [2000, 5000, 10000]
    counts = torch.bincount(splits.test.targets, minlength=10)
    assert counts.tolist() == [1000] * 10
    check(splits)
