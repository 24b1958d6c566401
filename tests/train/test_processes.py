import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modelzip.train.processes import placed, uses_bfloat16

from . import launched


def launch(folder: Path, *, processes: int) -> None:
    options = {
        "num_processes": processes,
        "num_machines": 1,
        "main_process_port": 0,  # any that is free
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += [launched.__file__, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, env=environment, timeout=200)


def test_two_processes_train_to_the_result_of_one(tmp_path: Path):
    results, models = [], []
    for name, start in (("one", launched.main), ("two", lambda f: launch(f, processes=2))):
        (tmp_path / name).mkdir()
        start(tmp_path / name)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        models.append(load_file(tmp_path / name / "model.safetensors"))
    assert [r["processes"] for r in results] == [1, 2]
    assert results[0]["accuracy"] == pytest.approx(results[1]["accuracy"], abs=0.01)
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "two" / "checkpoint.safetensors").is_file()
    size, alone = results[1]["refused"]
    assert "batch_size must be a multiple of the 2 processes, got 33" in size
    assert "data: generator trains in one process, and there are 2; start one" in alone


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)
    native = torch.cpu.get_capabilities()
    assert uses_bfloat16("auto", cpu) == (native["avx512_bf16"] or native["amx_tile"])


def test_convolutions_are_channels_last_only_inside():
    model = nn.Conv2d(3, 4, 3)
    last = torch.channels_last
    with placed(model, torch.device("cpu")):
        assert model.weight.is_contiguous(memory_format=last)
    assert model.weight.is_contiguous()
    model.to(memory_format=last)
    with placed(model, torch.device("cpu")):
        pass
    assert model.weight.is_contiguous(memory_format=last)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_the_model_comes_home_from_the_gpu():
    model = nn.Linear(2, 2)
    with placed(model, torch.device("cuda:0")):
        assert model.weight.is_cuda
    assert not model.weight.is_cuda
