import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import onnx
import pytest
from onnx import numpy_helper

from modelzip import cli
from modelzip.errors import SettingError
from modelzip.measure.machine import sha256
from modelzip.report.record import read

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4}
data: {build: "modelzip.data:digits", batch_size: 64, calibration: 128}
steps:
  - prune_channels: {sparsity: 0.25, round_to: 1}
  - finetune: {epochs: 2, lr: 0.05}
  - int8
measure: {batch_sizes: [2]}
require: {size: 0.9x}
"""
# found beside the recipe; the name is no one else's
OWN = """
import torch
from torch import nn
from modelzip.data import Splits

def looping():
    class Looping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return torch.stack([self.fc(row.flatten()) for row in x])
    return Looping()

def wrong_dtype():
    pair = [(torch.zeros(1, 8, 8, dtype=torch.int64), 1)] * 128
    return Splits(train=pair, validation=pair, test=pair, classes=10)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    (path / "small.yaml").write_text(RECIPE)
    (path / "own_cli_parts.py").write_text(OWN)
    return path


@pytest.fixture
def modelzip(folder, monkeypatch, capsys):
    """Run the command line in this process: its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["modelzip", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def start(folder, *arguments, **settings):
    command = [sys.executable, "-m", "modelzip", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def wait_for(pattern, folder, process):
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(folder):
    """A whole run, in a process of its own."""
    process = start(folder, "run", "small.yaml")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.startswith("PASS: small, 1 of 1 requirements met")
    assert out.rstrip().endswith("report: runs/small/report.md")
    return folder / "runs" / "small"


def test_a_run_leaves_its_report_and_status_0(finished):
    assert read(finished).passed


def test_a_run_is_verified_layer_by_layer(folder, finished):
    process = start(folder, "verify", "runs/small")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "identical on 360 samples" in out
    assert out.rstrip().endswith("PASS: the file computes what its model does, as reported")


def test_a_run_is_bundled_for_others_to_read(modelzip, folder, finished):
    status, out, err = modelzip("bundle", "runs/small", "-o", "small.tar.gz")
    assert status == 0, err
    assert out.startswith("small.tar.gz: model.onnx, recipe.yaml, report.json, report.md; ")
    status, out, err = modelzip("unpack", "small.tar.gz")
    assert (status, out) == (0, "small\n"), err
    record = read(folder / "small")
    assert record == read(finished)
    assert record.hashes["model.onnx"] == sha256(folder / "small" / "model.onnx")


def test_a_tampered_file_fails_verification_and_names_the_layer(folder, finished):
    other = shutil.copytree(finished, folder / "tampered")
    model = onnx.load(other / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "3.weight")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array[::-1].copy(), weight.name))
    onnx.save(model, other / "model.onnx")
    process = start(folder, "verify", "tampered", "--samples", "64")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, err
    assert "first differing layer: 3, " in out
    assert "! model.onnx is not the file of the report: its SHA-256 is another" in out
    assert out.rstrip().endswith("FAIL")


def test_the_layers_of_a_recipe_are_ranked_by_sensitivity(modelzip):
    status, out, err = modelzip("sensitivity", "small.yaml", "--bits", "2")
    assert status == 0, err
    header, _, *rows = out.splitlines()
    assert header.split() == ["layer", "bits", "KL", "same", "answer", "of", "size", "of", "time"]
    assert sorted(row.split()[0] for row in rows) == ["0", "11", "3", "6"]


def test_the_layers_of_a_recipe_are_ranked_by_what_pruning_them_costs(modelzip, folder):
    status, out, err = modelzip("sensitivity", "small.yaml", "--prune", "--plot", "cuts.svg")
    assert status == 0, err
    header, _, *rows = out.splitlines()
    assert header.split() == ["layer", "channels", "left", "KL", "same", "answer", "accuracy"]
    assert len(rows) == 3 * len({row.split()[0] for row in rows})
    assert (folder / "cuts.svg").read_text().startswith("<?xml")


def test_a_plot_that_cannot_be_drawn_is_refused_at_once(modelzip):
    with pytest.raises(SettingError, match="--plot draws what --prune measures; add --prune"):
        modelzip("sensitivity", "small.yaml", "--plot", "cuts.svg", "--debug")
    with pytest.raises(SettingError, match="a plot is written as"):
        modelzip("sensitivity", "small.yaml", "--prune", "--plot", "cuts.pdf", "--debug")


def test_a_missed_requirement_is_status_1(modelzip, finished):
    status, out, _ = modelzip(
        "run", "small.yaml", "--set", "require.size=0.01x", "--out", "missed", "--quiet",
        "--set", "steps=[int8]",
    )  # fmt: skip
    assert status == 1
    assert out.startswith("FAIL: missed, 0 of 1 requirements met\n! size: ")


def test_a_killed_run_resumes_to_the_same_file(folder, finished):
    process = start(folder, "run", "small.yaml", "--out", "killed")
    wait_for("killed.partial/step-2.training", folder, process)
    process.kill()
    process.communicate(timeout=30)
    assert not (folder / "killed").exists()
    process = start(folder, "run", "small.yaml", "--out", "killed", "--resume")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    killed, whole = read(folder / "killed"), read(finished)
    assert killed.hashes["model.onnx"] == whole.hashes["model.onnx"]
    assert killed.compressed.accuracy == whole.compressed.accuracy


def test_two_processes_train_one_model(folder):
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    options = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    options += ["--main_process_port=0"]  # any that is free
    arguments = ["-m", "modelzip", "run", "small.yaml", "--out", "two", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *options, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    assert read(folder / "two").passed
    assert done.stdout.count("PASS: two") == 1
    assert not (folder / "two.partial").exists()


def test_ctrl_c_keeps_the_checkpoint_and_names_resume(folder):
    shutil.copy(folder / "small.yaml", folder / "long.yaml")  # names the folder, without --out

    def take_signals():  # which whoever runs the tests in the background has turned off
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    settings = ("--set", "steps.1.finetune.epochs=500")
    process = start(folder, "run", "long.yaml", *settings, preexec_fn=take_signals)
    wait_for("runs/long.partial/step-2.training", folder, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "interrupted; continue with: modelzip run long.yaml "
        "--set steps.1.finetune.epochs=500 --out runs/long --resume"
    )
    assert list((folder / "runs" / "long.partial").glob("*.training"))


def test_a_full_disk_is_one_line(folder):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = start(folder, "run", "small.yaml", "--out", "full", "--quiet", preexec_fn=limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: cannot write ")
    assert len(err.splitlines()) == 1
    assert not (folder / "full").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "error: there is no recipe none.yaml"),
        (
            ["run", "small.yaml", "--set", "steps.0.prune_channels.sparsty=1"],
            "error: small.yaml: steps[0]: prune_channels has no setting 'sparsty'; "
            "did you mean 'sparsity'?",
        ),
        (
            ["run", "small.yaml", "--set", "steps.2=int9"],
            "error: small.yaml: steps[2]: there is no pass 'int9'; did you mean 'int8'?",
        ),
        (
            ["run", "small.yaml", "--set", "model.width=four"],
            "error: width must be an integer of at least 1, got 'four'",
        ),
        (
            ["run", "small.yaml", "--set", "model.wdth=4"],
            "error: modelzip.zoo:digits_cnn has no argument 'wdth'; did you mean 'width'?",
        ),
        (
            ["run", "small.yaml", "--set", "steps.0.prune_channels.targets=[fc]"],
            "error: targets=['fc'] matches none of the 4 ",
        ),
        (
            ["run", "small.yaml", "--set", "model={build: 'own_cli_parts:looping'}",
             "--set", "steps=[{int8: {mode: static}}]"],
            "error: Looping was captured on its example inputs, but ",
        ),
        (
            ["run", "small.yaml", "--set", "data={build: 'own_cli_parts:wrong_dtype'}"],
            "error: Sequential does not take the data's items, int64 [1, 8, 8]: ",
        ),
        (["verify", "none"], "error: there is no none; give the folder of a finished run"),
        (["compare", "none"], "error: there is no none; give the folder of a finished run"),
        (["measure", "none.onnx"], "error: there is no file none.onnx"),
        (["measure", "small.yaml"], "error: small.yaml is not an ONNX file"),
        (["passes", "prune"], "error: there is no pass 'prune'; "),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_status_2(modelzip, folder, arguments, message):
    before = sorted(folder.rglob("*.onnx"))
    status, out, err = modelzip(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert sorted(folder.rglob("*.onnx")) == before


def test_weights_that_do_not_fit_name_their_keys(modelzip, folder):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"fc.weight": zeros(2)}, folder / "other.safetensors")
    status, _, err = modelzip("check", "small.yaml", "--set", "model.weights=other.safetensors")
    assert status == 2
    assert "other.safetensors does not fit the model" in err
    assert "0.weight" in err


def test_an_existing_folder_is_refused(modelzip, folder):
    (folder / "taken").mkdir(exist_ok=True)
    status, _, err = modelzip("run", "small.yaml", "--out", "taken")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: taken exists already; give another folder")


def test_check_says_what_each_step_would_do_and_runs_nothing(modelzip, folder):
    status, out, _ = modelzip("check", "small.yaml", "--set", "steps.0.prune_channels.sparsity=0.5")
    assert status == 0
    assert out.startswith("small.yaml is valid; nothing was run\n1. prune_channels (")
    assert "sparsity: 0.5" in out
    assert "3. int8 (" in out


def test_a_pass_from_another_package_runs_from_yaml(folder, plugin_environment):
    steps = "steps=[{clip_weights: {limit: 0.1}}, int8]"
    arguments = ("run", "small.yaml", "--quiet", "--out", "clipped", "--set", steps)
    process = start(folder, *arguments, env=plugin_environment)
    _, err = process.communicate(timeout=200)
    assert process.returncode in (0, 1), err
    report = json.loads((folder / "clipped" / "report.json").read_text())
    assert [step["name"] for step in report["steps"]] == ["clip_weights", "int8"]


def test_passes_are_listed_and_described(modelzip):
    _, out, _ = modelzip("passes")
    for name in ("prune_channels", "magnitude_prune", "fake_quantize", "int8", "cast", "finetune"):
        assert f"\n{name} " in out
    _, out, _ = modelzip("passes", "prune_channels")
    assert "https://arxiv.org/" in out
    assert "\nround_to      8" in out


def test_files_are_measured_alone_and_against_others(modelzip, finished):
    status, out, _ = modelzip("measure", finished / "model.onnx", "--batch-size", "3")
    assert status == 0
    assert "latency, onnxruntime, batch 3" in out
    _, out, _ = modelzip(
        "measure", finished / "model.onnx", "--against", finished / "baseline.onnx"
    )
    assert "on 16 random inputs: same answer" in out
    _, out, _ = modelzip("measure", finished / "model.onnx", "--layers")
    assert out.startswith("batch 1\nlayer ")


def test_runs_are_compared(modelzip, finished):
    status, out, _ = modelzip("compare", finished, finished)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["pass", "pass"]


@pytest.mark.parametrize(
    "command", ["run", "check", "verify", "sensitivity", "passes", "measure", "compare"]
)
def test_every_command_shows_an_example(modelzip, command):
    status, out, _ = modelzip(command, "--help")
    assert status == 0
    assert f"Example: modelzip {command} " in out


def test_a_traceback_is_shown_with_debug_alone(modelzip):
    from modelzip.errors import SettingError

    with pytest.raises(SettingError, match="there is no recipe"):
        modelzip("run", "none.yaml", "--debug")


def test_importing_modelzip_adds_little_to_torch_and_no_onnx():
    code = """
import time, torch, sys
start = time.perf_counter()
import modelzip
took = time.perf_counter() - start
modelzip.MagnitudePrune(sparsity=0.5)
loaded = {"onnx", "onnxruntime", "yaml", "pydantic", "typer"} & set(sys.modules)
print(took < 0.2, sorted(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "True []\n"
