"""Generators through the command line: recipe in, report and sheets out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from modelzip import generate as job
from modelzip.cli import app
from modelzip.data import files
from modelzip.errors import SettingError
from modelzip.generation import vae_encoder
from modelzip.measure.size import file_size
from modelzip.recipe import loader, sources
from modelzip.recipe.generation import GenerationRecipe
from modelzip.report.generation import read
from modelzip.report.record import read as read_classifier
from modelzip.runtime.session import load

RECIPES = Path(__file__).parent.parent / "recipes"
VAE = {"build": "modelzip.generation:vae_encoder", "latent": 4, "width": 4, "epochs": 3}
GAN = {
    "build": "modelzip.generation:gan_discriminator",
    "latent": 4,
    "width": 4,
    "epochs": 1,
    "classifier_epochs": 1,
    "classes": 2,
}
TUNE = {"steps": 4, "optimizer": "adam", "lr": 0.01, "keep": "last"}


@pytest.fixture
def arrays(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = generator.integers(0, 40, (96, 1, 28, 28), np.uint8)
    images[labels == 0, :, :14] += 200
    path = tmp_path / "images.npz"
    np.savez(
        path,
        train_x=images[:64],
        train_y=labels[:64],
        test_x=images[64:],
        test_y=labels[64:],
    )
    return str(path)


@pytest.fixture
def write(tmp_path, arrays):
    def write(**sections):
        recipe = {
            "seed": 3,
            "model": {"build": "modelzip.zoo:image_generator", "latent": 4, "width": 8},
            "companion": VAE,
            "data": {
                "build": "modelzip.data:npz",
                "path": arrays,
                "validation": 16,
                "batch_size": 16,
                "calibration": 32,
            },
            "steps": [
                {"prune_channels": {"sparsity": 0.3, "round_to": 4}},
                {"finetune": TUNE},
                "int8",
            ],
            "measure": {"runtimes": ["onnxruntime"], "batch_sizes": [1]},
            **sections,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


def modelzip(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_vae_from_recipe_to_report(write, tmp_path):
    recipe = write(archive={"codec": "auto"}, require={"size": "0.9x", "score": "2x"})
    out = tmp_path / "run"
    done = modelzip("run", recipe, "--out", out, "--quiet")
    assert done.exit_code == 0, done.output
    assert "PASS: run, 2 of 2 requirements met" in done.output
    record = read(out)
    assert record.n == 32
    assert next(iter(record.compressed.scores)) == "negative ELBO, nats an image"
    assert record.compressed.size_bytes == (out / "model.onnx").stat().st_size
    assert record.compressed.archive_bytes == (out / "model.mzip").stat().st_size
    assert [step.name for step in record.steps] == ["prune_channels", "finetune", "int8"]
    assert record.parity.max_difference < 1e-4
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "![samples of the original](original.png)" in page
    for name in ("original.png", "compressed.png"):
        with Image.open(out / name) as sheet:
            assert sheet.size == (8 * 28 * 2, 8 * 28 * 2)


def test_the_scores_are_of_the_file_and_of_the_saved_companion(write, tmp_path):
    out = tmp_path / "run"
    assert modelzip("run", write(), "--out", out, "--quiet").exit_code == 0
    companion = vae_encoder(latent=4, width=4)
    companion.load_state_dict(load_file(out / "companion.safetensors"))
    recipe = loader.load(out / "recipe.yaml")
    given = companion.given(sources.build_data(recipe))
    images = torch.from_numpy(load(out / "model.onnx").run(given.test.codes)[0])
    expected = float((images - given.test.images).square().mean())
    found = read(out).compressed.scores["squared error of a pixel"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_gan_from_recipe_to_report(write, tmp_path):
    tune = {"finetune": {**TUNE, "distill": True, "distill_weight": 1.0}}
    recipe = write(
        companion=GAN,
        steps=[{"magnitude_prune": {"sparsity": 0.5, "scope": "layer"}}, tune, "int8"],
    )
    out = tmp_path / "run"
    done = modelzip("run", recipe, "--out", out, "--quiet")
    assert done.exit_code == 0, done.output
    record = read(out)
    assert set(record.compressed.scores) == {"Frechet distance"}
    assert record.compressed.nonzero < 0.7 * record.baseline.nonzero


def test_a_missed_requirement_is_exit_status_1(write, tmp_path):
    recipe = write(require={"size": "0.01x", "score": "0.01x"})
    done = modelzip("run", recipe, "--out", tmp_path / "run", "--quiet")
    assert done.exit_code == 1
    assert "FAIL: run, 0 of 2 requirements met" in done.output
    assert "! score: " in done.output


def test_a_stopped_run_goes_on_with_what_was_trained(write, tmp_path, monkeypatch):
    out = tmp_path / "run"
    recipe = loader.load(write())

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "_carry_out", stop)
        with pytest.raises(KeyboardInterrupt):
            job.generate(recipe, out=out, progress=False)
    kept = load_file(tmp_path / "run.partial" / "original.safetensors")
    record = job.generate(recipe, out=out, resume=True, progress=False)
    again = load_file(out / "original.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert record.training_seconds == 0
    whole = job.generate(recipe, out=tmp_path / "whole", progress=False)
    assert whole.compressed.scores == pytest.approx(record.compressed.scores, rel=1e-6)


def test_a_half_written_network_is_not_taken_for_a_whole_one(write, tmp_path, monkeypatch):
    def cut(_, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    recipe = loader.load(write())
    with monkeypatch.context() as patched:
        patched.setattr(job, "save_file", cut)
        with pytest.raises(KeyboardInterrupt):
            job.generate(recipe, out=tmp_path / "run", progress=False)
    record = job.generate(recipe, out=tmp_path / "run", resume=True, progress=False)
    assert record.training_seconds > 0
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_gan_without_distillation_is_refused_before_training(write):
    recipe = write(companion=GAN, steps=[{"finetune": TUNE}])
    done = modelzip("check", recipe)
    assert "give distill: true and distill_weight: 1.0" in str(done.exception)


def test_check_prints_the_plan(write):
    done = modelzip("check", write())
    assert done.exit_code == 0, done.output
    assert "1. prune_channels" in done.output
    assert "nothing was run" in done.output


def test_the_recipe_of_a_run_can_be_read_again(write, tmp_path):
    recipe = loader.load(write())
    assert isinstance(recipe, GenerationRecipe)
    path = tmp_path / "again.yaml"
    path.write_text(loader.dump(recipe), encoding="utf-8")
    assert loader.load(path).resolved() == recipe.resolved()


def test_compare_and_verify_say_that_it_is_no_report_of_theirs(write, tmp_path):
    out = tmp_path / "run"
    assert modelzip("run", write(), "--out", out, "--quiet").exit_code == 0
    done = modelzip("compare", out)
    assert done.exit_code == 2 or isinstance(done.exception, SettingError)
    with pytest.raises(SettingError, match="has schema 'generation 1'"):
        read_classifier(out)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"robustness": {"jpeg": [50]}}, "robustness is of classifiers; leave it out"),
        ({"require": {"accuracy": "90 %"}}, "require: accuracy is of classifiers"),
        ({"measure": {"sensitivity": True}}, "measure: sensitivity is of classifiers"),
        ({"steps": [{"finetune": {"steps": 2}}]}, "give keep: last"),
        ({"steps": [{"int8": {"keep_float": "auto"}}]}, "int8: nothing is timed for a generator"),
        (
            {"model": {"build": "modelzip.zoo:image_generator", "weights": "recipe.yaml"}},
            "the companion trains it; leave out train and weights",
        ),
        ({"companion": {"latent": 3}}, "companion.build is missing"),
    ],
)
def test_what_a_generator_cannot_have_is_refused(write, sections, message):
    with pytest.raises(SettingError, match=message):
        loader.load(write(**sections))


def test_synthetic_calibration_is_refused(write, arrays):
    data = {"build": "modelzip.data:npz", "path": arrays, "calibration": "synthetic"}
    with pytest.raises(SettingError, match="codes are all that a generator is calibrated with"):
        loader.load(write(data=data))


def test_stored_data_are_refused(write, arrays):
    data = {"build": "modelzip.data:npz", "path": arrays, "store": {"bits": 5}}
    with pytest.raises(SettingError, match="data: store is for classifiers; leave it out"):
        loader.load(write(data=data))


@pytest.mark.parametrize("command", [["sensitivity"], ["pack", "--lossy", "size=0.1x"]])
def test_commands_for_classifiers_say_so(write, command):
    done = modelzip(*command, write())
    assert "it is a generator's, which modelzip run and check take" in str(done.exception)


def test_a_companion_that_is_none_is_refused(write):
    recipe = loader.load(write(companion={"build": "modelzip.zoo:digits_cnn"}))
    with pytest.raises(SettingError, match="returned Sequential; it must return a Companion"):
        job.generate(recipe, out="none", progress=False)


def test_several_processes_are_refused(write, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="a generator trains in one process"):
        job.generate(loader.load(write()), out="none", progress=False)


def test_every_layer_of_a_generator_can_be_integers(write, tmp_path):
    out = tmp_path / "run"
    assert modelzip("run", write(steps=["int8"]), "--out", out, "--quiet").exit_code == 0
    layers = [layer for layer in file_size(out / "model.onnx").layers if layer.macs]
    assert len(layers) == 4
    assert all(layer.bits < 16 for layer in layers)  # 8, and 32 of biases


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    files.local_file("fashion_mnist.npz") is None,
    reason="MODELZIP_DATA names no folder with Fashion-MNIST",
)
@pytest.mark.parametrize("name", ["fashion_mnist_vae", "fashion_mnist_gan"])
def test_a_recipe_meets_its_requirements(name, tmp_path):
    done = modelzip("run", RECIPES / f"{name}.yaml", "--out", tmp_path / name, "--quiet")
    assert done.exit_code == 0, done.output
    assert read(tmp_path / name).parity.mean_difference < 1e-4


def test_a_report_of_another_kind_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"schema": 3}), encoding="utf-8")
    with pytest.raises(SettingError, match="has schema 3, not 'generation 1'"):
        read(tmp_path)


def test_a_damaged_report_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingError, match="is no readable report of a generator"):
        read(tmp_path)
