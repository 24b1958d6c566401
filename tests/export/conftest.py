"""What tests of exported files share."""

import numpy as np
import pytest
import torch

from modelzip.core.running import tensors
from modelzip.runtime import session


def compare_outputs(model, path, inputs, feeds=None):
    """The file's outputs are the model's."""
    with torch.no_grad():
        expected = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    results = session.load(path).run(inputs if feeds is None else feeds)
    expected = list(tensors(expected))
    assert len(results) == len(expected)
    for result, tensor in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, tensor.numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def compare():
    """compare(model, path, inputs, feeds=None): the file gives the outputs of the model."""
    return compare_outputs
