"""Fine-tunes, and writes the result; started by `accelerate launch` in a test."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from modelzip.core.prepare import Prepared
from modelzip.data import digits
from modelzip.errors import ModelzipError
from modelzip.train.finetune import FineTune, finetune


def net(*, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # no batch norm: its statistics are those of one process's part of a batch
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )


def refusal(prepared: Prepared, how: FineTune, **arguments) -> str:
    try:
        finetune(prepared, digits(), how, progress=False, **arguments)
    except ModelzipError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    model, teacher = net(seed=0), net(seed=1)
    prepared = Prepared(model)
    report = finetune(
        prepared,
        digits(),
        FineTune(steps=20, lr=0.02, precision="float32", distill=True, distill_features=("0", "2")),
        teacher=teacher,
        batch_size=32,
        checkpoint=folder / "checkpoint.safetensors",
        progress=False,
    )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = FineTune(steps=1, distill=True, data="generator", generator_warmup=0)
    refused = [
        refusal(prepared, FineTune(steps=1), batch_size=33),
        refusal(prepared, alone, batch_size=32, teacher=teacher),
    ]
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return
    save_file(state, folder / "model.safetensors")
    result = {
        "processes": report.processes,
        "accuracy": report.kept.validation_accuracy,
        "refused": refused,
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
