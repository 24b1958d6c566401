"""The built-in data sources, each a function that returns `Splits`.

Arguments they share:
    validation: how much of the training data to hold out: a count, or a fraction below 1.
    seed: of that choice, and of the augmentation. The test set is the same for every seed.
    limit: keep at most this many training samples; all by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from modelzip.core import checks
from modelzip.data import files, images
from modelzip.data.arrays import in_memory, split_off
from modelzip.data.base import Splits
from modelzip.errors import DataError, MissingExtraError

RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
_CIFAR_COUNTS = {"train": 50_000, "test": 10_000}
_CIFAR = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_FASHION_SPLITS = {"train": "train", "test": "t10k"}
_FASHION_FILES = {
    "train-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def digits(*, validation: float = 0.15, seed: int = 0, limit: int | None = None) -> Splits:
    """scikit-learn's bundled handwritten digits: 1,797 images, float32 [1, 8, 8] in [0, 1].

    A fixed fifth is the test set. Alpaydin & Kaynak 1998, https://doi.org/10.24432/C50P49.

    >>> inputs, label = digits().train[0]
    >>> inputs.shape, len(digits().test)
    (torch.Size([1, 8, 8]), 360)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="demo", purpose="the digits data") from error
    bunch = load_digits()
    inputs = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    targets = torch.from_numpy(bunch.target).long()
    train, test = split_off(len(inputs), validation=360, limit=None, seed=0)
    return in_memory(
        (inputs[train], targets[train]),
        (inputs[test], targets[test]),
        classes=10,
        validation=validation,
        limit=limit,
        seed=seed,
    )


def cifar10(
    *, validation: float = 5000, seed: int = 0, limit: int | None = None, augment: bool = True
) -> Splits:
    """CIFAR-10: 50,000 + 10,000 images, float32 [3, 32, 32], normalised by `RGB_MEAN`, `RGB_STD`.

    Read from `cifar10_webp.npz` (needs Pillow) or `cifar-10-binary.tar.gz` in the folder that
    MODELZIP_DATA names; otherwise the latter is downloaded, checked and cached.
    Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.

    Args:
        augment: random crops from 4 pixels of padding and flips, on the training images alone.
    """
    path = files.local_file("cifar10_webp.npz")
    if path is None:
        batches = {name: (x, y) for name, x, y in cifar_archive()}
        test = batches.pop("test_batch")
        images, labels = zip(*batches.values(), strict=True)
        train = np.concatenate(images), np.concatenate(labels)
    else:
        train, test = cifar_strips(path, "train"), cifar_strips(path, "test")
    return in_memory(
        as_tensors(*train),
        as_tensors(*test),
        classes=10,
        validation=validation,
        limit=limit,
        seed=seed,
        mean=RGB_MEAN,
        std=RGB_STD,
        crop=4 if checks.flag("augment", augment) else 0,
    )


def fashion_mnist(*, validation: float = 5000, seed: int = 0, limit: int | None = None) -> Splits:
    """Fashion-MNIST: 60,000 + 10,000 images, float32 [1, 28, 28], normalised by mean and std.

    Read from `fashion_mnist.npz` or the four .gz files in the folder that MODELZIP_DATA names;
    otherwise the latter are downloaded, checked and cached.
    Xiao et al. 2017, https://arxiv.org/abs/1708.07747.
    """
    return in_memory(
        fashion("train"),
        fashion("test"),
        classes=10,
        validation=validation,
        limit=limit,
        seed=seed,
        mean=FASHION_MEAN,
        std=FASHION_STD,
    )


def npz(
    *,
    path: str | Path,
    validation: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    crop: int = 0,
) -> Splits:
    """Arrays `train_x`, `train_y`, `test_x`, `test_y` of an .npz file; nothing is unpickled.

    `*_x` are [N, ...] as the model takes them (images [N, C, H, W]): floats become float32, uint8
    becomes float32 in [0, 1], other integers become int64 (token ids). `*_y` are integers [N].

    Args:
        mean, std: per channel (dimension 1), applied after the conversion.
        crop: pixels of padding of random crops, with flips, of training images; 0 for none.
    """
    file = files.NpzFile(path)
    train, test = arrays(file, "train"), arrays(file, "test")
    if train[0].shape[1:] != test[0].shape[1:] or train[0].dtype != test[0].dtype:
        raise DataError(
            f"{path}: train_x is {train[0].dtype} {list(train[0].shape)} and test_x "
            f"{test[0].dtype} {list(test[0].shape)}; all but the first dimension must agree"
        )
    return in_memory(
        train,
        test,
        classes=int(max(train[1].max(), test[1].max())) + 1,
        validation=validation,
        limit=limit,
        seed=seed,
        mean=mean,
        std=std,
        crop=checks.integer("crop", crop, low=0),
    )


def image_folder(
    *,
    path: str | Path,
    size: int = 224,
    validation: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    mean: Sequence[float] = RGB_MEAN,
    std: Sequence[float] = RGB_STD,
) -> Splits:
    """Images in `path`/train/CLASS/ and `path`/test/CLASS/, float32 [3, size, size], normalised.

    Classes are numbered in the order of their folders' names. Files are read as they are needed.
    BMP, JPEG, PNG, PPM and WebP; needs Pillow.
    """
    checks.integer("size", size, low=1)
    names, train = images.class_folders(Path(path) / "train")
    test_names, test = images.class_folders(Path(path) / "test")
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise DataError(f"{path}: train and test differ in their class folders: {', '.join(odd)}")
    rest, held_out = split_off(len(train), validation=validation, limit=limit, seed=seed)
    whole = images.ImageFiles(train, size=size, mean=mean, std=std)
    return Splits(
        train=Subset(whole, rest.tolist()),
        validation=Subset(whole, held_out.tolist()),
        test=images.ImageFiles(test, size=size, mean=mean, std=std),
        classes=len(names),
        names=names,
    )


def arrays(file: files.NpzFile, split: str) -> tuple[Tensor, Tensor]:
    """`split`_x and `split`_y of a file as `npz` describes them."""
    inputs, targets = (
        file.read(f"{split}_x", kinds="fui"),
        file.read(f"{split}_y", kinds="ui", ndim=1),
    )
    return as_tensors(inputs, targets)


def as_tensors(inputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Arrays as datasets hold them: bytes as they are, floats as float32, the rest as int64."""
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(np.float32)
    elif inputs.dtype != np.uint8:
        inputs = inputs.astype(np.int64)
    owned = np.require(inputs, requirements=["C", "W"])  # torch warns of read-only memory
    return torch.from_numpy(owned), torch.from_numpy(targets.astype(np.int64))


def fashion(split: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a split of Fashion-MNIST; no file of the other is touched."""
    path = files.local_file("fashion_mnist.npz")
    parts = []
    for part, ndim, kind in (("x", 3, "images"), ("y", 1, "labels")):
        if path is None:
            name = f"{_FASHION_SPLITS[split]}-{kind}-idx{ndim}"
            url = f"{_FASHION}{name}-ubyte.gz"
            parts.append(files.idx(files.fetch(url, sha256=_FASHION_FILES[name]), ndim=ndim))
        else:
            parts.append(files.NpzFile(path).read(f"{split}_{part}", kinds="u", ndim=ndim))
    return as_tensors(parts[0][:, None], parts[1])


def cifar_archive() -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """The batches of CIFAR-10's archive, which is fetched."""
    url, sha256 = _CIFAR
    return files.cifar_batches(files.fetch(url, sha256=sha256))


def cifar_strips(path: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels of a split of CIFAR-10 in `cifar10_webp.npz`; the other is not read."""
    file, count = files.NpzFile(path), _CIFAR_COUNTS[split]
    strips = [
        files.webp_strip(
            file.read(name, kinds="u", ndim=1).tobytes(), side=32, where=f"{path}: {name}"
        )
        for name in sorted(n for n in file.names if n.startswith(f"{split}_strip"))
    ]
    labels = file.read(f"{split}_y", kinds="u", ndim=1)
    found = sum(len(s) for s in strips)
    if found != count or len(labels) != count:
        raise DataError(f"{path}: {found} {split} images and {len(labels)} labels, not {count}")
    return np.ascontiguousarray(np.concatenate(strips).transpose(0, 3, 1, 2)), labels
