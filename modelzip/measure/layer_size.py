"""What each layer of a file stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelzip.measure.file_layers import FileLayers
from modelzip.measure.onnx_count import count


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """Weights and biases of one layer of a file, and the mean bits that one is stored in."""

    parameters: int
    bits: float

    @property
    def size_bytes(self) -> float:
        return self.parameters * self.bits / 8


def layer_sizes(path: str | Path, *, example_inputs: Any = None) -> dict[str, StoredLayer]:
    """What each layer of the file `path` stores, by the layer's name, in the file's order.

    A tensor that several layers share counts for the first. Arguments and errors are those of
    `modelzip.measure.size.file_size`.
    """
    file = FileLayers(Path(path))
    owners = {n.name or n.output[0]: o for n, o in zip(file.nodes, file.owner, strict=True)}
    found: dict[str, StoredLayer] = {}
    for size in count(Path(path), example_inputs=example_inputs)[0]:
        name = owners.get(size.name, "") or size.name
        before = found.get(name, StoredLayer(parameters=0, bits=0.0))
        parameters = before.parameters + size.parameters
        bits = before.parameters * before.bits + size.parameters * size.bits
        found[name] = StoredLayer(
            parameters=parameters, bits=bits / parameters if parameters else 0.0
        )
    return found
