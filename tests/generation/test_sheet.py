import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modelzip.errors import MissingExtraError, OutputError
from modelzip.generation import check_pillow, write_sheet
from modelzip.generation.sheet import tile


def test_images_stand_row_by_row():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 3) / 255
    assert tile(images)[::2, ::3].tolist() == [[0, 1], [2, 3]]


def test_a_place_left_over_is_black():
    assert tile(torch.ones(3, 1, 1, 1)).tolist() == [[255, 255], [255, 0]]


def test_the_file_is_twice_as_large(tmp_path):
    write_sheet(torch.ones(4, 1, 2, 2), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as found:
        assert (found.format, found.size) == ("PNG", (8, 8))
        assert np.asarray(found).min() == 255


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*sheet.png: No such file"):
        write_sheet(torch.ones(1, 1, 2, 2), tmp_path / "none" / "sheet.png")


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"images.*"):
        check_pillow()
