"""Bias correction and least-squares rounding on small nets: what each layer puts out is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.core.running import evaluating
from modelzip.quantization import rounding
from modelzip.quantization.integer import QuantizedConv


class Net(nn.Module):
    """Convolutions with and without a bias and a batch norm, an in-place sum, a shared layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding="same", groups=4)
        self.twice = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.deep(x)
        y += x
        y = F.relu(self.twice(self.twice(y)), inplace=True)
        return self.head(y.mean((2, 3)))


def images(count=64, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net():
    torch.manual_seed(0)
    model = Net()
    for _ in range(20):
        model(images())
    return model.eval()


def run(model, x):
    with evaluating(model):
        return model(x)


def prepared(**settings):
    return mz.prepare(
        net(),
        [mz.Int8(**{"bias_correction": False} | settings)],
        calibration=[images(32), images(32, 1)],
    ).model


@pytest.mark.parametrize("method", ["nearest", "least_squares"])
def test_the_mean_output_is_the_float_model_s(method):
    x, wanted = images(32), run(net(), images(32))
    plain = run(prepared(bits=3), x)
    corrected = run(prepared(bits=3, rounding=method, bias_correction=True), x)
    before, after = ((out - wanted).mean(0).abs().max() for out in (plain, corrected))
    assert float(after) < 0.25 * float(before)


def test_channels_behind_a_batch_norm_keep_mean_and_deviation():
    graph = prepared(bits=2, bias_correction=True)
    seen = {}
    for model in (net(), graph):
        hook = model.norm.register_forward_hook(lambda _, __, out, m=model: seen.update({m: out}))
        run(model, images(32))
        hook.remove()
    exact, rounded = seen.values()
    dims = (0, 2, 3)
    torch.testing.assert_close(rounded.mean(dims), exact.mean(dims), atol=0.01, rtol=0)
    torch.testing.assert_close(rounded.std(dims), exact.std(dims), atol=0.01, rtol=0.01)


def test_least_squares_keeps_outputs_better_than_nearest():
    x = images(64, seed=7)
    wanted = run(net(), x)
    errors = [
        float((run(prepared(bits=3, **kw), x) - wanted).square().mean())
        for kw in ({}, {"rounding": "least_squares", "bias_correction": True})
    ]
    assert errors[1] < 0.3 * errors[0]


def test_chosen_integers_are_those_deployed():
    zipped = mz.prepare(
        net(), [mz.Int8(bits=3, rounding="least_squares")], calibration=[images(32)]
    )
    small, x = zipped.convert(), images(8, 3)
    stored = [m.weight for m in small.modules() if isinstance(m, QuantizedConv)]
    assert all(int(w.abs().max()) <= 3 * 16 for w in stored)
    torch.testing.assert_close(run(small, x), run(zipped.model, x), atol=0.02, rtol=0)
    zipped.model.train()
    before = zipped.model.stem.weight.clone()
    zipped.model(x)  # training mode does not fit the scales anew
    assert torch.equal(zipped.model.stem.weight, before)


def test_pruned_weights_stay_pruned():
    passes = [mz.MagnitudePrune(sparsity=0.5), mz.Int8(bits=4, rounding="least_squares")]
    zipped = mz.prepare(net(), passes, calibration=[images(32)])
    pruned = mz.prepare(net(), passes[:1]).model.deep.weight == 0
    assert not zipped.convert().deep.weight[pruned].any()


def test_inputs_given_by_keyword():
    batches = [({"x": images(32)}, torch.zeros(32))]
    zipped = mz.prepare(net(), [mz.Int8(bits=3, bias_correction=True)], calibration=batches)
    plain = mz.prepare(net(), [mz.Int8(bits=3, bias_correction=True)], calibration=[images(32)])
    assert torch.equal(run(zipped.model, images(4)), run(plain.model, images(4)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 9, 7)),
        (nn.Conv2d(3, 4, (1, 4), padding="same", dilation=(1, 2)), (5, 3, 6, 8)),
        (nn.Conv1d(2, 4, 5, padding=3, dilation=2), (5, 2, 20)),
        (nn.Linear(4, 3), (5, 6, 4)),
    ],
)
def test_a_layer_is_its_weight_times_the_inputs_that_are_looked_at(layer, shape):
    x = torch.randn(shape)
    columns = rounding._inputs(layer, x, limit=10**6)
    rows = layer.weight.flatten(1).chunk(len(columns))
    found = torch.cat([w @ c for w, c in zip(rows, columns, strict=True)])
    channel = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
    wanted = (layer(x) - 0).movedim(channel, 0).flatten(1) - layer.bias[:, None]
    torch.testing.assert_close(found, wanted)


def test_of_large_images_every_few_positions_of_all_samples_are_looked_at():
    columns = rounding._inputs(nn.Conv2d(2, 2, 3, padding=1), torch.randn(4, 2, 30, 30), 400)
    assert columns.shape == (1, 18, 4 * 10 * 10)


def test_no_quantizer_is_left_observing():
    graph = prepared(bits=4, bias_correction=True, rounding="least_squares")
    assert not any(vars(module).get("observing") for module in graph.modules())
