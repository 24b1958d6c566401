"""Data sources, and batches of them."""

from modelzip.data.base import Augmented, Splits, build, loader

__all__ = ["Augmented", "Splits", "build", "loader"]
