"""Data sources, and batches of them."""

from modelzip.data.absent import evaluation_only
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Augmented, Normalised, Splits, Texts, build, loader
from modelzip.data.checking import calibration_batches, check
from modelzip.data.evaluation import (
    cifar10_test,
    fashion_mnist_test,
    image_folder_test,
    npz_test,
)
from modelzip.data.fewer import coreset, without_duplicates
from modelzip.data.packed import ChunkShuffled, PackedArrays, PackedDataset, pack
from modelzip.data.sms import sms_spam
from modelzip.data.sources import cifar10, digits, fashion_mnist, image_folder, npz
from modelzip.data.text import sst2

__all__ = [
    "ArrayDataset",
    "Augmented",
    "ChunkShuffled",
    "Normalised",
    "PackedArrays",
    "PackedDataset",
    "Splits",
    "Texts",
    "build",
    "calibration_batches",
    "check",
    "cifar10",
    "cifar10_test",
    "coreset",
    "digits",
    "evaluation_only",
    "fashion_mnist",
    "fashion_mnist_test",
    "image_folder",
    "image_folder_test",
    "loader",
    "npz",
    "npz_test",
    "pack",
    "sms_spam",
    "sst2",
    "without_duplicates",
]
