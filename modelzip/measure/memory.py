"""Peak memory of serving a file, measured in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelzip.core import checks
from modelzip.errors import ExportError
from modelzip.runtime.inputs import match
from modelzip.runtime.session import load

_TIMEOUT_S = 300

# Runs with numpy and onnxruntime alone. The kernel's per-process high-water mark is reset and
# read where /proc has one: getrusage's mark starts at the parent's, which torch makes large.
_CHILD = """
import json, sys
import numpy, onnxruntime
path, feeds_path, names, threads, runs = json.loads(sys.argv[1])

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

def peak_kb():
    try:
        return status("VmHWM")
    except (OSError, StopIteration):
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak

arrays = numpy.load(feeds_path, allow_pickle=False)
feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}
try:
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
except (OSError, StopIteration):
    before = peak_kb()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
loaded = peak_kb()
for _ in range(runs):
    session.run(None, feeds)
print(json.dumps([loaded - before, peak_kb() - before]))
"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak resident memory over that of a process with onnxruntime imported, in 10**6 bytes.

    Attributes:
        load_mb: until the file was loaded and optimised.
        peak_mb: until several batches had been run; at least `load_mb`.
    """

    load_mb: float
    peak_mb: float


def peak_memory(path: str | Path, inputs: Any, *, threads: int = 1, runs: int = 3) -> Memory:
    """Peak memory of loading `path` in onnxruntime on the CPU and running the batch `inputs`.

    Raises:
        DataError: the inputs do not fit the file.
        ExportError: the file cannot be loaded, or the process that serves it failed.
    """
    checks.integer("runs", runs, low=1)
    session = load(path, threads=threads)  # checks the file and the inputs, with better errors
    feeds = match(session.inputs, inputs)
    with tempfile.TemporaryDirectory() as folder:
        feeds_path = Path(folder) / "feeds.npz"
        with feeds_path.open("wb") as file:
            np.savez(file, *feeds.values())  # by position: a name may be savez's own argument
        job = json.dumps([str(Path(path).resolve()), str(feeds_path), list(feeds), threads, runs])
        command = [sys.executable, "-I", "-c", _CHILD, job]
        try:
            done = subprocess.run(  # noqa: S603  # our own interpreter and code
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{path}: serving it took over {_TIMEOUT_S} s") from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(
                f"{path}: the process serving it ended with {error.returncode}: {last[:300]}"
            ) from error
    load_kb, peak_kb = json.loads(done.stdout)
    return Memory(load_mb=load_kb * 1024 / 1e6, peak_mb=peak_kb * 1024 / 1e6)
