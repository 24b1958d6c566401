import shutil

import onnx
import pytest
import torch
from onnx import numpy_helper

import modelzip as mz
from modelzip.data import digits
from modelzip.errors import SettingError
from modelzip.recipe.verify import verify
from modelzip.run import compress
from modelzip.zoo import digits_cnn


def make_model():
    torch.manual_seed(0)
    return digits_cnn(width=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of `compress`, whose recipe names no model and no data."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    quick = {"batch_sizes": [1]}
    steps = [mz.FineTune(steps=60, lr=0.1), mz.Int8()]
    compress(make_model(), steps, data=digits(), out=folder, measure=quick, progress=False)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def check(folder, **settings):
    return verify(folder, make_model=make_model, data=digits(), **settings)


def test_a_run_is_what_its_report_says(folder):
    found = check(folder)
    assert found.problems == ()
    assert found.layers.n == found.accuracy.n == 360
    assert found.layers.first is None


def test_a_sample_is_enough(folder):
    found = check(folder, samples=50)
    assert found.problems == ()
    assert found.accuracy.n == 50


def test_a_changed_file_is_found_by_its_hash_its_layer_and_its_accuracy(folder):
    model = onnx.load(folder / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "3.weight")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array[::-1].copy(), weight.name))
    onnx.save(model, folder / "model.onnx")
    problems = check(folder).problems
    assert problems[0] == "model.onnx is not the file of the report: its SHA-256 is another"
    assert problems[1].startswith("first differing layer: 3, ")
    assert problems[-1].startswith("accuracy is ")


def test_a_missing_file_is_named(folder):
    (folder / "baseline.onnx").unlink()
    assert check(folder).problems == ("baseline.onnx is missing",)


def test_a_recipe_without_a_model_needs_one(folder):
    with pytest.raises(SettingError, match=r"names no model and data, since compress\(\)"):
        verify(folder)


def test_an_unreadable_recipe_is_refused(folder):
    (folder / "recipe.yaml").write_text("a: [")
    with pytest.raises(SettingError, match=r"recipe\.yaml is not a readable recipe"):
        verify(folder)


def test_samples_are_checked(folder):
    with pytest.raises(SettingError, match="samples must be an integer of at least 1, got 0"):
        check(folder, samples=0)
