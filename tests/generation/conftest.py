import pytest
import torch

from modelzip.data import ArrayDataset, Splits


@pytest.fixture
def data():
    """Two classes of grey images that are told apart at a glance: bright above, or below."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randint(0, 40, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :14] += 200
    images[labels == 1, :, 14:] += 200

    def part(start, stop):
        return ArrayDataset(images[start:stop], labels[start:stop], mean=(0.3,), std=(0.35,))

    return Splits(train=part(0, 32), validation=part(32, 48), test=part(48, 64), classes=2)
