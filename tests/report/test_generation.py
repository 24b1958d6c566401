import math

import pytest

from modelzip.measure.parity import Parity
from modelzip.report.generation import GeneratorFigures, judge, notes, parity_holds
from modelzip.report.requirements import parse


def figures(size, score, archive=None):
    return GeneratorFigures(
        file="model.onnx",
        sha256="",
        size_bytes=size,
        parameters=size // 4,
        nonzero=size // 4,
        macs=10 * size,
        scores={"error": score, "other": 1.0},
        archive_bytes=archive,
    )


def parity(mean):
    return Parity(
        n=10, agreement=1, identical=0, max_difference=mean, mean_difference=mean, scale=1.0
    )


def measured(name, limit, before, after):
    (found,) = judge([parse(name, limit)], before, after, [])
    return found.measured, found.met


def test_the_score_is_the_first_as_a_ratio():
    assert measured("score", "1.05x", figures(1000, 2.0), figures(500, 2.2)) == ("1.1x", False)


def test_sizes_are_of_the_files():
    before, after = figures(1000, 1.0, archive=900), figures(500, 1.0, archive=300)
    assert measured("size", "500 B", before, after) == ("500 B", True)
    assert measured("archive", "0.3x", before, after) == ("0.3x", True)
    assert measured("macs", "0.4x", before, after) == ("0.5x", False)


def test_what_was_not_measured_is_not_met():
    assert measured("archive", "1x", figures(9, 1.0), figures(9, 1.0)) == ("not measured", False)
    assert measured("latency", "1x", figures(9, 1.0), figures(9, 1.0)) == ("not measured", False)


def test_a_score_of_zero_before_has_no_ratio():
    assert measured("score", "2x", figures(9, 0.0), figures(9, 1.0)) == ("not measured", False)


@pytest.mark.parametrize(("mean", "holds"), [(0.0009, True), (0.002, False), (math.nan, False)])
def test_file_and_module_make_the_same_images_but_for_a_thousandth(mean, holds):
    assert parity_holds(parity(mean)) is holds
    said = notes((), parity(mean))
    assert said == () if holds else "the file differs from its module by" in said[0]
