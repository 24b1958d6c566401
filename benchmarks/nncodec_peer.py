"""NNCodec in a process of its own: it needs an older numpy, and replaces torch with a CUDA build.

    python nncodec_peer.py IN.npz OUT.npz QP

Encodes the arrays of IN.npz (float32 by a step of about 2^(QP / 4), integers as they are), decodes
them into OUT.npz, and prints the bytes of its bitstream. It imports packages for data sets and
logging that no coding needs: those that are not installed are left out. An environment for it:

    python3 -m venv nncodec
    nncodec/bin/pip install torch==2.13.0 "numpy<2"
    nncodec/bin/pip install --no-deps nncodec==2.1.3
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

UNUSED = ("cv2", "flwr", "h5py", "pandas", "sklearn", "torchvision", "tqdm", "wandb")


class LeftOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module for each of UNUSED and what is in them."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    source, target, qp = sys.argv[1:]
    sys.meta_path.append(LeftOut())  # after all that is installed
    from nncodec import nnc

    arrays = dict(np.load(source))
    ready = {
        n: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for n, a in arrays.items()
    }
    with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):
        stream = nnc.compress(
            ready, bitstream_path=os.devnull, qp=int(qp), verbose=False, return_bitstream=True
        )
        found = nnc.decompress(bytearray(stream), verbose=False)
    np.savez(target, **{n: np.asarray(found[n]).astype(arrays[n].dtype) for n in arrays})
    print(len(stream))


if __name__ == "__main__":
    main()
