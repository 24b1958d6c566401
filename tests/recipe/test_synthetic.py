"""`calibration: synthetic`: a recipe that reads no training data."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

import modelzip as mz
from modelzip.data import digits, evaluation_only
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.recipe import loader
from modelzip.recipe.schema import Recipe, parse_calibration
from modelzip.recipe.steps import rehearsal
from modelzip.recipe.workshop import open_workshop
from modelzip.report.record import read
from modelzip.train.finetune import finetune
from modelzip.train.synthetic import Synthetic
from modelzip.zoo import digits_cnn

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4, weights: digits.safetensors}
data: {build: "digits_test_alone:digits", batch_size: 64, calibration: synthetic}
steps:
  - fake_quantize: {bits: 4, activation_bits: 8, method: lsq}
  - finetune: {data: generator, steps: 3, lr: 0.001, distill: true, generator_warmup: 2}
measure: {runtimes: [onnxruntime], batch_sizes: [2]}
require: {accuracy_drop: 15 pp, size: 0.9x}
"""
SOURCE = """
from modelzip import data

def digits():
    return data.evaluation_only(data.digits().test, classes=10)
"""


@pytest.fixture(scope="module")
def net():
    """A small model of the digits, trained on them."""
    torch.manual_seed(0)
    prepared = mz.Prepared(digits_cnn(width=4))
    finetune(prepared, digits(), mz.FineTune(epochs=4, lr=0.1), batch_size=64, progress=False)
    return prepared.model.eval()


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    found = tmp_path_factory.mktemp("datafree")
    save_file(net.state_dict(), found / "digits.safetensors")
    (found / "small.yaml").write_text(RECIPE)
    (found / "digits_test_alone.py").write_text(SOURCE)
    return found


def modelzip(folder, *arguments):
    command = [sys.executable, "-m", "modelzip", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_recipe_without_training_data_runs_from_the_command_line(folder):
    done = modelzip(folder, "run", "small.yaml", "--out", "out", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    record = read(folder / "out")
    assert record.compressed.accuracy.n == len(digits().test)
    assert "No training data were used: 128 samples were synthesised" in record.notes[-1]
    assert "No training data were used" in (folder / "out" / "report.md").read_text()


def test_a_check_makes_samples_quickly_and_reads_no_training_data(folder):
    done = modelzip(folder, "check", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    number = modelzip(folder, "check", "small.yaml", "--set", "data.calibration=64")
    assert number.returncode != 0
    assert "there are no training data here, for evaluation alone" in number.stderr


def test_compress_takes_a_model_in_hand(net, tmp_path):
    data = evaluation_only(digits().test, classes=10)
    how = {"synthetic": {"samples": 64, "steps": 20}}
    measure = {"runtimes": ["onnxruntime"], "batch_sizes": [1]}
    record = mz.compress(
        net, [mz.Int8()], data=data, out=tmp_path / "out", calibration=how, measure=measure
    )
    assert record.compressed.accuracy.top1 > record.baseline.accuracy.top1 - 0.05


def test_the_same_seed_makes_the_same_samples(net):
    data = evaluation_only(digits().test, classes=10)
    how = Synthetic(samples=16, steps=2)
    one, two, other = (
        open_workshop(data, batch_size=8, calibration=how, seed=seed, model=net)
        for seed in (0, 0, 1)
    )
    for first, again, third in zip(
        one.calibration, two.calibration, other.calibration, strict=True
    ):
        assert torch.equal(first[0], again[0])
        assert not torch.equal(first[0], third[0])
    assert len(one.example_inputs) == 8


def test_the_test_data_are_looked_at_first(net):
    data = evaluation_only([], classes=10)
    with pytest.raises(DataError, match="list is empty; there is nothing to load"):
        open_workshop(data, batch_size=8, calibration=Synthetic(), seed=0, model=net)


def test_a_model_that_does_not_take_the_test_data_is_refused_before_any_are_made(net):
    pairs = [(torch.zeros(3, 8, 8), 0)]
    data = evaluation_only(pairs, classes=10)
    with pytest.raises(DataError, match=r"does not take the data's items, float32 \[3, 8, 8\]"):
        open_workshop(data, batch_size=8, calibration=Synthetic(), seed=0, model=net)
    fewer = evaluation_only(digits().test, classes=3)
    with pytest.raises(ModelError, match=r"with 3 classes in the data it must be"):
        open_workshop(fewer, batch_size=8, calibration=Synthetic(), seed=0, model=net)


def test_a_model_is_needed():
    with pytest.raises(SettingError, match="made from the model; pass model="):
        open_workshop(digits(), batch_size=8, calibration=Synthetic(), seed=0)


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(ModelError, match="Sequential has no batch norm with running statistics"):
        mz.compress(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
            [mz.Int8()],
            data=digits(),
            out="none",
            calibration="synthetic",
        )


def test_a_rehearsal_finds_that_a_generator_cannot_learn():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    shop = open_workshop(digits(), batch_size=8, calibration=8, seed=0)
    step = mz.FineTune(data="generator", steps=1, distill=True)
    with pytest.raises(ModelError, match="Sequential has no batch norm with running statistics"):
        rehearsal([step], net, shop)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (64, 64),
        ("synthetic", Synthetic()),
        ({"synthetic": None}, Synthetic()),
        ({"synthetic": {"steps": 7}}, replace(Synthetic(), steps=7)),
    ],
)
def test_what_calibration_may_say(value, found):
    assert parse_calibration(value) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "must be a number of samples of at least 1, or synthetic, got 0"),
        (True, "or synthetic, got True"),
        ("synthetik", "or synthetic, got 'synthetik'"),
        ({"synthetic": {"step": 1}}, "synthetic has no setting 'step'; did you mean 'steps'?"),
        ({"synthetic": 5}, "synthetic must have a mapping of settings, got 5"),
    ],
)
def test_what_calibration_may_not_say(value, text):
    with pytest.raises(SettingError) as raised:
        parse_calibration(value)
    assert text in str(raised.value)


def test_the_resolved_recipe_is_read_back(folder):
    recipe = loader.load(folder / "small.yaml")
    again = yaml.safe_load(loader.dump(recipe))
    assert again["data"]["calibration"] == {"synthetic": {"samples": 128, "steps": 60, "lr": 0.3}}
    assert loader.validate(Recipe, again).data == recipe.data


def test_a_model_that_the_recipe_trains_is_refused(folder):
    with pytest.raises(SettingError, match=r"model.train reads training data"):
        loader.load(folder / "small.yaml", overrides=["model.train={epochs: 1}"])
