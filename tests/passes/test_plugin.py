"""A pass from another package, once installed, is like those built in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import modelzip as mz
from modelzip.core import registry
from modelzip.errors import SettingError

SCRIPT = """
import sys
import torch
from torch import nn
import modelzip as mz
from modelzip.core import registry
from modelzip.testing import check_pass

path = sys.argv[1]
clip = registry.build("clip_weights", {"limit": 0.1})
assert registry.available()["clip_weights"] is type(clip)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
zipped = mz.prepare(model, [mz.MagnitudePrune(sparsity=0.5), clip])
zipped.save(path)
fresh = lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
print(round(float(mz.load(fresh, path)[2].weight.detach().abs().max()), 3))
check_pass(clip, fresh, torch.randn(2, 8))
"""


def test_installed_pass_works_by_name_from_checkpoints_and_under_the_contract(
    plugin_environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "clip.safetensors"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(path)],
        env=plugin_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0.1"), done.stderr
    with pytest.raises(SettingError, match="there is no pass 'clip_weights'"):
        mz.load(nn.Identity, path)  # not installed here


def test_pass_that_is_not_installed_is_unknown() -> None:
    assert "clip_weights" not in registry.available()
