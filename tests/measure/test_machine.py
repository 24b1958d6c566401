import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import modelzip
from modelzip.errors import DataError
from modelzip.measure import machine
from modelzip.measure.machine import describe, sha256


def test_it_describes_this_machine() -> None:
    found = describe()
    assert found.cores == os.cpu_count()
    assert 1 <= found.usable_cores <= found.cores
    assert found.python == platform.python_version()
    assert found.packages["torch"] == torch.__version__
    assert found.packages["modelzip"] == modelzip.__version__
    assert len(found.gpu) == torch.cuda.device_count()
    assert json.loads(json.dumps(asdict(found)))["memory_gb"] == found.memory_gb


@pytest.mark.parametrize(
    ("line", "isa"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8", ("avx2", "avx512f", "avx512_vnni")),
        ("Features\t: fp asimd asimddp i8mm", ("neon", "dotprod", "i8mm")),
        ("", ()),
    ],
)
def test_instruction_sets_are_read_from_cpuinfo(
    monkeypatch: pytest.MonkeyPatch, line: str, isa: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\n{line}\n")
    assert tuple(name for name in describe().isa if name != "amx_int8") == isa


def test_a_system_without_proc_leaves_fields_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert describe().isa == ()


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PACKAGES", ("numpy", "no-such-package-there-is"))
    assert list(describe().packages) == ["numpy"]


def test_sha256_is_hashlibs_over_several_chunks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_missing_file_cannot_be_hashed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none to hash it: No such file"):
        sha256(tmp_path / "none")
