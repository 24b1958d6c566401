"""`modelzip check` on pruning recipes: what stays and why is said before anything is run."""

import os
import re
import subprocess
import sys

import pytest

from modelzip import cli

RECIPE = """
model: {build: "own_check_parts:net"}
data: {build: "modelzip.data:digits", batch_size: 64, calibration: 64}
steps:
  - prune_channels: {sparsity: 0.5, round_to: 4, scope: layer}
  - finetune: {epochs: 1, lr: 0.05}
"""
OWN = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10),
    )

def parallel():
    return nn.DataParallel(net())

def failing():
    class Failing(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("no weights for this camera")
    return Failing(*net())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("check")
    (path / "prune.yaml").write_text(RECIPE)
    (path / "own_check_parts.py").write_text(OWN)
    return path


def test_the_plan_lists_what_is_protected_and_why(folder):
    done = subprocess.run(
        [sys.executable, "-m", "modelzip", "check", "prune.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, step, *rest = done.stdout.splitlines()
    assert first == "prune.yaml is valid; nothing was run"
    assert step.startswith("1. prune_channels (")
    assert re.fullmatch(r"   \d layers: parameters [\d,]+ -> [\d,]+, \d+ of them zero, .*", rest[0])
    leaves = dict(line.strip().removeprefix("leaves ").split(": ", 1) for line in rest[1:3])
    assert leaves.keys() == {"2", "8"}
    assert "LayerNorm '5'" in leaves["2"]
    assert leaves["8"] == "feeds the model's output"
    assert rest[3].startswith("2. finetune (")
    assert sorted(p.suffix for p in folder.iterdir() if p.is_file()) == [".py", ".yaml"]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.build=own_check_parts:parallel"],
            "what own_check_parts:parallel returned is wrapped in DataParallel; give model.module",
        ),
        (
            ["model.build=own_check_parts:failing"],
            "Failing does not take the data's items, float32 [1, 8, 8]: no weights for this camera",
        ),
        (
            ["steps.0.prune_channels.targets=['2', '8']"],
            "prune_channels can prune none of the layers: '2' ",
        ),
        (
            ["steps.0.prune_channels={macs: 0.01x, round_to: 4}"],
            "macs=0.01x cannot be met: 0.",
        ),
        (["steps.0.prune_channels.sparsity=0"], "sparsity must be a fraction in (0, 1), got 0"),
        (["steps.0.prune_channels.sparsity=1"], "sparsity must be a fraction in (0, 1), got 1"),
        (["steps.0.prune_channels.sparsity=80"], "got 80; for 80 % write 0.8"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, monkeypatch, capsys, settings, message):
    arguments = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["modelzip", "check", "prune.yaml", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
