"""Makes the archives of this folder; run it for a new version of the format, never for an old one.

python tests/archive/golden/make.py VERSION
"""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from modelzip.archive import choose, codecs
from modelzip.archive.pack import pack

HERE = Path(__file__).parent


def tensors() -> dict[str, torch.Tensor]:
    """Tensors that every form and codec is used for, from integers alone: the same anywhere."""
    state, drawn = 1, []
    for _ in range(4 * 1152):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        drawn.append((state >> 40) % 4096 - 2048)
    numbers = np.array(drawn, np.int64).reshape(4, -1)
    bell = numbers.sum(0) // 4
    weight = torch.from_numpy((bell / 8192).astype(np.float32)).reshape(16, 8, 3, 3)
    small = torch.from_numpy((bell // 60).astype(np.int8)).reshape(16, 8, 3, 3)
    noise = numbers[0]
    return {
        "float32": weight,
        "float16": weight.half(),
        "bfloat16": weight.bfloat16(),
        "int8": small,
        "sparse": torch.where(small.abs() > 18, small, torch.zeros_like(small)),
        "rounded": small.float() * 0.0123,
        "clustered": weight.flatten()[small.flatten().long() % 13].reshape(18, 64),
        "int16": torch.from_numpy(noise.astype(np.int16)),
        "tokens": torch.arange(300),
        "mask": torch.from_numpy(noise[:200] > 0),
        "int4": small.clamp(-8, 7),
        "small": torch.tensor([1.5, -2.0]),
        "count": torch.tensor(7),
    }


def pack_four_bits(path: Path) -> None:
    """An archive of an ONNX file of the one tensor "int4", which safetensors has no type for."""
    value = tensors()["int4"].numpy()
    weight = numpy_helper.from_array(value.astype(ml_dtypes.int4), "int4")
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight]))
    onnx.save(model, source := path.with_suffix(".onnx"))
    pack(source, path)
    source.unlink()


def main(version: str) -> None:
    folder = HERE / f"version_{version}"
    folder.mkdir()
    pack_four_bits(folder / "nibbles.mzip")
    for codec in ("auto", *choose.INTEGERS, *codecs.NAMES):
        pack(tensors(), folder / f"{codec}.mzip", codec=codec)


if __name__ == "__main__":
    main(sys.argv[1])
