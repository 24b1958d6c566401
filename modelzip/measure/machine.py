"""Where figures were measured, and the hashes of what was measured."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from modelzip.errors import DataError

# the instruction sets that decide which kernels onnxruntime and torch choose
_ISA = (
    ("avx", "avx"),
    ("f16c", "f16c"),
    ("fma", "fma"),
    ("avx2", "avx2"),
    ("avx_vnni", "avx_vnni"),
    ("avx512f", "avx512f"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_fp16", "avx512_fp16"),
    ("amx_tile", "amx_tile"),
    ("amx_int8", "amx_int8"),
    ("amx_bf16", "amx_bf16"),
    ("asimd", "neon"),
    ("asimddp", "dotprod"),
    ("i8mm", "i8mm"),
    ("bf16", "bf16"),
    ("sve", "sve"),
)
_PACKAGES = (
    "modelzip", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures depend on. Unknown texts are "", unknown numbers 0.

    Attributes:
        cpu: the processor's name; `isa` its instruction sets that matter here.
        cores: logical ones, of which this process may use `usable_cores`.
        memory_gb: main memory, in units of 10**9 bytes.
        gpu: names of CUDA devices that torch sees.
        threads: threads that torch would use here; sessions set their own.
        packages: versions of those installed.
    """

    cpu: str
    isa: tuple[str, ...]
    cores: int
    usable_cores: int
    memory_gb: float
    system: str
    python: str
    gpu: tuple[str, ...]
    threads: int
    packages: dict[str, str]


def describe() -> Machine:
    """This machine, as this process sees it.

    >>> describe().cores >= 1
    True
    """
    cores = os.cpu_count() or 0
    return Machine(
        cpu=_cpu_field("model name") or platform.processor(),
        isa=_isa(),
        cores=cores,
        usable_cores=_usable_cores() or cores,
        memory_gb=round(_memory_bytes() / 1e9, 1),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        gpu=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        threads=torch.get_num_threads(),
        packages=_versions(),
    )


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     sha256(file.name)[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path} to hash it: {error.strerror}") from error
    return digest.hexdigest()


def _isa() -> tuple[str, ...]:
    flags = set((_cpu_field("flags") or _cpu_field("Features")).split())
    return tuple(name for flag, name in _ISA if flag in flags)


def _cpu_field(name: str) -> str:
    """The first processor's field of /proc/cpuinfo; "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
    fields = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone has it
        return 0


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
