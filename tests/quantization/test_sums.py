import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.core.running import evaluating
from modelzip.quantization.fake import ActivationQuantizer
from modelzip.quantization.integer import QuantizedAdd


class Blocks(nn.Module):
    """Three residual blocks; the last adds something far larger than its stream."""

    def __init__(self, last=30.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        with torch.no_grad():
            for block, size in zip(self.blocks, (1.5, 1.5, last), strict=True):
                block.weight.mul_(size)
                block.bias.fill_(-0.6)  # so that the stream stays as wide as it was

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return x.mean((2, 3))


def inputs():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return Blocks()


def graph(calibrator="mse", **settings):
    passes = [mz.Int8(calibrator=calibrator, **settings)]
    return mz.prepare(net(), passes, calibration=[inputs()])


def scales(model):
    return {
        name.rpartition(".")[2]: float(q.scale)
        for name, q in model.named_modules()
        if isinstance(q, ActivationQuantizer)
    }


def test_a_sum_has_the_step_of_its_terms_where_their_ranges_are_alike():
    found = scales(graph().model)
    assert found["blocks_0"] == found["stem"] == found["add"]
    assert found["blocks_1"] == found["add"] == found["add_1"]


def test_a_sum_of_another_range_keeps_a_step_of_its_own():
    found = scales(graph().model)
    assert found["add_2"] > 2 * found["add_1"]


def test_what_shares_a_step_is_added_exactly_and_clipped():
    small = graph().convert()
    seen = []
    for module in small.modules():
        if isinstance(module, QuantizedAdd):
            module.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    with evaluating(small):
        small(inputs())
    module, (a, b), out = seen[0]
    top = 255 * module.out_scale
    torch.testing.assert_close(out, (a + b).clamp(torch.tensor(0.0), top), rtol=0, atol=1e-5)


def test_minmax_shares_nothing():
    found = scales(graph("minmax").model)
    assert found["blocks_0"] != found["stem"]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_of_the_outputs_is_no_larger(bits):
    errors = []
    for calibrator in ("mse", "mse_batch"):  # of one batch, the two have the same ranges
        small, model = graph(calibrator, activation_bits=bits).model, net()
        with evaluating(small), evaluating(model):
            errors.append(float((small(inputs()) - model(inputs())).square().mean()))
    assert errors[0] < 1.05 * errors[1]
