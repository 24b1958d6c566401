import builtins
import io

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset

from modelzip.data import ArrayDataset
from modelzip.data.corruptions import (
    KINDS,
    PixelScale,
    check_level,
    check_ranges,
    corrupt,
    scale_of,
)
from modelzip.errors import DataError, MissingExtraError, SettingError

LEVELS = {
    "jpeg": 75,
    "webp": 75,
    "bits": 4,
    "gaussian": 0.1,
    "impulse": 0.2,
    "blur": 1.0,
    "brightness": 0.3,
}


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, channels: int = 3, side: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=noise())


def test_every_kind_is_tried_here():
    assert LEVELS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_form_and_range_and_change(kind, channels):
    given_images = images(channels=channels)
    before = given_images.clone()
    found = corrupt(given_images, kind, LEVELS[kind], noise())
    assert (found.shape, found.dtype) == (before.shape, torch.float32)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, before)
    assert torch.equal(given_images, before)  # what is given stays
    assert torch.equal(found, corrupt(before, kind, LEVELS[kind], noise()))


def test_jpeg_is_pillows():
    image = images(1)
    pixels = image.mul(255).round().byte()[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=50)
    expected = np.asarray(PIL.Image.open(file)).transpose(2, 0, 1)
    found = corrupt(image, "jpeg", 50, noise())[0]
    assert np.array_equal(found.mul(255).round().byte().numpy(), expected)


@pytest.mark.parametrize(("bits", "expected"), [(1, [63.5, 63.5, 191.5]), (8, [0, 127, 255])])
def test_fewer_bits_are_the_middle_of_what_they_stand_for(bits, expected):
    image = torch.tensor([0, 127, 255]).view(1, 1, 1, 3) / 255
    found = corrupt(image, "bits", bits, noise())
    assert found.mul(255).flatten().tolist() == pytest.approx(expected)


def test_noise_has_its_deviation_and_impulses_their_share():
    grey = torch.full((1, 1, 200, 200), 0.5)
    assert float(corrupt(grey, "gaussian", 0.1, noise()).std()) == pytest.approx(0.1, rel=0.02)
    found = corrupt(grey, "impulse", 0.1, noise())
    assert float((found == 0).float().mean()) == pytest.approx(0.05, rel=0.1)
    assert float((found == 1).float().mean()) == pytest.approx(0.05, rel=0.1)


@given(value=st.floats(0, 1, width=32), deviation=st.floats(0.1, 3))
@settings(max_examples=20, deadline=None)
def test_blur_leaves_an_even_image_alone(value, deviation):
    even = torch.full((1, 2, 5, 5), value)
    assert torch.allclose(corrupt(even, "blur", deviation, noise()), even, atol=1e-6)


def test_blur_spreads_a_dot_as_a_gaussian():
    dot = torch.zeros(1, 1, 15, 15)
    dot[..., 7, 7] = 1
    found = corrupt(dot, "blur", 1.0, noise())[0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found[7, 8] / found[7, 7]) == pytest.approx(np.exp(-0.5), rel=1e-4)


def test_the_scale_is_the_datasets_own():
    raw = torch.randint(256, (6, 3, 4, 4), generator=noise()).byte()
    data = ArrayDataset(raw, torch.zeros(6).long(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    scale = scale_of(Subset(Subset(data, range(4)), range(2)))
    assert scale == PixelScale((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inputs, _ = data.__getitems__([0, 1])
    assert torch.equal(scale.pixels(inputs).mul(255).round().byte(), raw[:2])
    assert torch.allclose(scale.inputs(scale.pixels(inputs)), inputs, atol=1e-6)
    assert scale_of([1, 2]) == PixelScale()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 4).long(), r"corruptions are for images, .* got int64 \[2, 4\]"),
        ((torch.zeros(1),), "are for images, float N x C x H x W, got a tuple"),
        (torch.full((1, 1, 2, 2), 3.0), r"pixels must be in \[0, 1\], got 3 to 3; where a dataset"),
    ],
)
def test_what_are_no_images_of_the_scale_are_refused(inputs, message):
    with pytest.raises(DataError, match=message):
        PixelScale().pixels(inputs)


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("jpg", 50, "corruption has no choice 'jpg'; did you mean 'jpeg'"),
        ("jpeg", 0, "jpeg: quality must be an integer from 1 to 100, got 0"),
        ("jpeg", 50.5, "jpeg: quality must be an integer from 1 to 100, got 50.5"),
        ("gaussian", "a", "gaussian: standard deviation must be a number from 1e-06 to 1, got 'a'"),
        ("bits", True, "bits: bits a channel must be an integer from 1 to 8, got True"),
    ],
)
def test_levels_are_checked(kind, level, message):
    with pytest.raises(SettingError, match=message):
        check_level(kind, level)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, r"augment must be a mapping such as \{jpeg: \[50, 95\]\}, got \{\}"),
        ({"jpg": [1, 2]}, "augment has no choice 'jpg'; did you mean 'jpeg'"),
        ({"jpeg": 50}, r"augment: jpeg must be two levels, \[low, high\], got 50"),
        ({"jpeg": [95, 50]}, r"augment: jpeg must be \[low, high\], got \[95, 50\]"),
        ({"jpeg": [50, 101]}, "augment: jpeg: quality must be an integer from 1 to 100, got 101"),
    ],
)
def test_ranges_are_checked(ranges, message):
    with pytest.raises(SettingError, match=message):
        check_ranges("augment", ranges)


def test_coding_takes_grey_and_colour_alone():
    with pytest.raises(DataError, match="JPEG takes 1 or 3 channels, got 2"):
        corrupt(images(channels=2), "jpeg", 50, noise())


def test_pillow_is_named_where_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"WEBP images needs Pillow: .*modelzip\[images\]"):
        corrupt(images(), "webp", 50, noise())
