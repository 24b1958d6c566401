import numpy as np
import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.errors import ModelError
from modelzip.quantization.calibration import CALIBRATORS, calibrate
from modelzip.quantization.fake import ActivationQuantizer


def calibrated(*data, calibrator="minmax", percentile=99.99, form="any", bits=8, before=None):
    """A quantizer, after `before` where given, calibrated on batches `data`."""
    quantizer = ActivationQuantizer(bits=bits, form=form, method="fixed")
    model = nn.Sequential(before or nn.Identity(), quantizer)
    calibrate(
        model,
        [("here", quantizer)],
        [Batch(batch, None) for batch in data],
        calibrator=calibrator,
        percentile=percentile,
    )
    return quantizer


def test_minmax_covers_the_extremes_of_all_batches():
    scale, zero_point = calibrated(torch.tensor([-1.0, 0.5]), torch.tensor([0.0, 1.55])).grid()
    assert float(scale) == pytest.approx(2.55 / 255)
    assert zero_point == 100


@pytest.mark.parametrize(("low", "high"), [(2.0, 5.1), (-5.1, -2.0)])
def test_the_range_always_holds_zero(low, high):
    scale, zero_point = calibrated(torch.tensor([low, high])).grid()
    assert float(scale) == pytest.approx(5.1 / 255)
    assert zero_point == (0 if low > 0 else 255)


def test_after_a_relu_the_zero_point_is_0_and_after_a_relu6_the_top_at_most_6():
    values = torch.tensor([-0.5, 9.0])
    scale, zero_point = calibrated(values, form="relu").grid()
    assert (float(scale), zero_point) == (pytest.approx(9 / 255), 0)
    scale, zero_point = calibrated(values, form="relu6").grid()
    assert (float(scale), zero_point) == (pytest.approx(6 / 255), 0)
    assert 255 * float(scale) <= 6.000001


def test_percentile_leaves_the_rarest_values_out():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0], values[1] = 500.0, -500.0
    quantizer = calibrated(values, calibrator="percentile", percentile=99.0)
    expected = np.percentile(values.numpy(), [0.5, 99.5])
    width = 1000 / 2048
    assert float(quantizer.low) == pytest.approx(expected[0], abs=width)
    assert float(quantizer.high) == pytest.approx(expected[1], abs=width)


def test_mse_clips_a_lone_outlier_that_minmax_keeps():
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0
    errors = {}
    for calibrator in ("minmax", "mse"):
        quantizer = calibrated(values, calibrator=calibrator, bits=4, form="relu").eval()
        errors[calibrator] = float((quantizer(values) - values).square().mean())
    assert errors["mse"] < 0.5 * errors["minmax"]


def test_values_beyond_2_to_the_24_are_still_counted():
    # a float32 count would stop there, and the ones would seem to be 0.74 % instead of 0.50 %
    values = torch.zeros(3 * 2**23)
    values[:126_000] = 1.0
    quantizer = calibrated(values, calibrator="percentile", percentile=98.8)
    assert float(quantizer.high) < 0.01


def test_mse_batch_is_the_mean_of_each_batch_s_mse_range():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(5000, generator=generator) * size for size in (1.0, 2.0, 4.0)]
    found = calibrated(*batches, calibrator="mse_batch", bits=4)
    alone = [calibrated(b, calibrator="mse", bits=4) for b in batches]
    assert float(found.high) == pytest.approx(sum(float(q.high) for q in alone) / 3)
    assert float(found.low) == pytest.approx(sum(float(q.low) for q in alone) / 3)


def test_entropy_clips_a_lone_outlier():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).abs()
    values[0] = 20.0
    assert 2.5 < float(calibrated(values, calibrator="entropy", form="relu").high) < 10.0


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_no_range_is_wider_than_the_data(calibrator):
    values = torch.tensor([-0.7, 0.1, 0.33, 1.3])
    quantizer = calibrated(values, calibrator=calibrator, percentile=100.0)
    assert float(quantizer.low) > -0.70001
    assert float(quantizer.high) < 1.30001


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e6])
def test_constant_data_give_a_grid_that_works(calibrator, value):
    quantizer = calibrated(torch.full((10,), value), calibrator=calibrator)
    scale, zero_point = quantizer.grid()
    assert 0 < float(scale) < np.inf
    assert 0 <= zero_point <= 255
    result = quantizer.eval()(torch.tensor([value, 0.0]))
    assert torch.isfinite(result).all()
    assert float(result[0]) == pytest.approx(value, rel=0.02)
    assert float(result[1]) == 0.0


def test_calibration_rounds_nothing_while_it_observes():
    quantizer = ActivationQuantizer(bits=2, form="any", method="fixed")
    model = nn.Sequential(quantizer, after := nn.Identity())
    seen = []
    after.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    values = torch.rand(7)
    calibrate(model, [("q", quantizer)], [Batch(values, None)], calibrator="mse", percentile=99.0)
    assert all(torch.equal(v, values) for v in seen)
    assert not quantizer.observing
    assert not quantizer._forward_pre_hooks


@pytest.mark.parametrize("data", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])])
def test_refuses_nan_and_infinite_activations_by_name(data):
    with pytest.raises(ModelError, match="activation 'here' is NaN or infinite"):
        calibrated(data)


def test_a_nan_in_an_early_batch_is_not_forgotten():
    with pytest.raises(ModelError, match="activation 'here' is NaN"):
        calibrated(torch.tensor([float("nan")]), torch.tensor([1.0]))


def test_refuses_an_activation_that_was_never_computed():
    with pytest.raises(ModelError, match="was never computed"):
        calibrated(torch.zeros(0, 3))


def test_a_failing_model_leaves_no_hooks():
    class Failing(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.new_zeros(2, 2, 2)])

    quantizer = ActivationQuantizer(bits=8, form="any", method="fixed")
    model = nn.Sequential(quantizer, Failing())
    with pytest.raises(RuntimeError):
        calibrate(
            model,
            [("q", quantizer)],
            [Batch(torch.ones(3), None)],
            calibrator="minmax",
            percentile=1,
        )
    assert not quantizer.observing
    assert not quantizer._forward_pre_hooks
