"""What the README shows is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from modelzip.data import digits, loader
from modelzip.zoo import digits_cnn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


COMMANDS = re.findall(r"^modelzip (\w+)", "\n".join(blocks("")), flags=re.MULTILINE)


def test_the_training_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    torch.manual_seed(0)
    model = digits_cnn(width=4)
    batches = list(loader(digits(limit=64).train, batch_size=32))
    # the README builds the optimizer between the second and the third line, in words
    head, loop, tail = re.split(r"(?=^for )|(?=^small)", code, flags=re.MULTILINE)
    names = {"model": model, "x": batches[0][0], "loader": batches, "loss_fn": F.cross_entropy}
    exec(head, names)
    names["optimizer"] = torch.optim.SGD(names["zipped"].model.parameters(), lr=0.1)
    exec(loop + tail, names)
    assert (tmp_path / "small.onnx").stat().st_size < 20_000
    assert names["zipped"].steps == 2


def test_the_recipe_shown_is_the_one_in_recipes():
    (shown,) = blocks("yaml")
    name, _, text = shown.partition("\n")
    path = ROOT / name.removeprefix("# ")
    assert text == path.read_text(encoding="utf-8").partition("\n")[2]


def test_every_command_is_shown():
    assert sorted(set(COMMANDS)) == [
        "bundle",
        "check",
        "compare",
        "data",
        "list",
        "measure",
        "pack",
        "passes",
        "run",
        "sensitivity",
        "test",
        "unpack",
        "verify",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_exist(command):
    done = subprocess.run(
        [sys.executable, "-m", "modelzip", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"modelzip {command}" in done.stdout


def test_files_and_scripts_named_are_there():
    for name in re.findall(r"`((?:recipes|benchmarks|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
