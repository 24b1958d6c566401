import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelzip.data import images
from modelzip.errors import DataError, MissingExtraError


def write(path: Path, width: int, height: int, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(path)
    return path


def test_an_item_is_scaled_cut_and_normalised(tmp_path: Path):
    path = write(tmp_path / "a.png", 40, 20)
    data = images.ImageFiles([(path, 3)], size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    inputs, label = data[0]
    assert label == 3
    assert inputs.shape == (3, 8, 8)
    assert torch.allclose(inputs[:, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


def test_the_centre_is_kept(tmp_path: Path):
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = images.ImageFiles([(tmp_path / "a.png", 0)], size=4, mean=(0, 0, 0), std=(1, 1, 1))
    assert bool((data[0][0] == 1).all())


def test_a_damaged_image_is_named(tmp_path: Path):
    path = write(tmp_path / "a.png", 30, 30)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        images.open_image(path, where=str(path))


def test_an_image_beyond_the_limit_is_not_decoded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    path = write(tmp_path / "a.png", 30, 30)
    with pytest.raises(DataError, match=r"a\.png has 30 x 30 pixels; the limit is 100"):
        images.open_image(path, where=str(path))


def test_class_folders_are_numbered_in_order(tmp_path: Path):
    for name in ("dog", "cat"):
        write(tmp_path / name / "x.png", 4, 4)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    names, found = images.class_folders(tmp_path)
    assert names == ("cat", "dog")
    assert [(p.parent.name, label) for p, label in found] == [("cat", 0), ("dog", 1)]


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no images in sub-folders"):
        images.class_folders(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        images.class_folders(tmp_path / "none")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        MissingExtraError, match=r"reading images needs Pillow: .*modelzip\[images\]"
    ):
        images.open_image(tmp_path / "a.png", where="a.png")
