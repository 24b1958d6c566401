"""The test data of the built-in sources alone: no training data are read, or need to be there.

What `evaluation_only` is for: recipes with `calibration: synthetic`. A setting of training data,
such as `validation` or `limit`, is not among their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from modelzip.core import checks
from modelzip.data import files, images, sources
from modelzip.data.absent import evaluation_only
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Splits


def cifar10_test() -> Splits:
    """The 10,000 test images of `cifar10`.

    Read from `cifar10_webp.npz`, which needs no training strips, or the archive's
    `test_batch.bin`, in the folder that MODELZIP_DATA names; otherwise from the archive.
    """
    strips, batch = files.local_file("cifar10_webp.npz"), files.local_file("test_batch.bin")
    if strips is not None:
        test = sources.cifar_strips(strips, "test")
    elif batch is not None:
        test = files.cifar_batch(batch)
    else:
        test = next((x, y) for name, x, y in sources.cifar_archive() if name == "test_batch")
    return _alone(sources.as_tensors(*test), classes=10, mean=sources.RGB_MEAN, std=sources.RGB_STD)


def fashion_mnist_test() -> Splits:
    """The 10,000 test images of `fashion_mnist`, from the same places; two files are enough."""
    test = sources.fashion("test")
    return _alone(test, classes=10, mean=sources.FASHION_MEAN, std=sources.FASHION_STD)


def npz_test(
    *, path: str | Path, classes: int, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Splits:
    """Arrays `test_x` and `test_y` of an .npz file, as `npz` takes them.

    Args:
        classes: how many the model tells apart; test labels need not have them all.
    """
    checks.integer("classes", classes, low=2)
    test = sources.arrays(files.NpzFile(path), "test")
    return _alone(test, classes=classes, mean=mean, std=std)


def image_folder_test(
    *,
    path: str | Path,
    size: int = 224,
    mean: Sequence[float] = sources.RGB_MEAN,
    std: Sequence[float] = sources.RGB_STD,
) -> Splits:
    """Images in `path`/test/CLASS/, as `image_folder` takes them: a folder for every class."""
    checks.integer("size", size, low=1)
    names, found = images.class_folders(Path(path) / "test")
    test = images.ImageFiles(found, size=size, mean=mean, std=std)
    return evaluation_only(test, classes=len(names), names=names)


def _alone(
    test: tuple[Tensor, Tensor], *, classes: int, mean: Sequence[float], std: Sequence[float]
) -> Splits:
    return evaluation_only(ArrayDataset(*test, mean=mean, std=std), classes=classes)
