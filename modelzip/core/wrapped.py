"""What stands in for a model and cannot be taken apart: the model inside must be given."""

from __future__ import annotations

from torch import fx, jit, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.nn.parallel import DataParallel, DistributedDataParallel

from modelzip.errors import ModelError


def refuse_wrapped(model: object, *, source: str = "the model") -> None:
    """ModelError if `model`, which came from `source`, is not the eager module that was trained.

    That is: compiled, scripted, exported, wrapped for several devices, or no module at all.

    >>> import torch
    >>> refuse_wrapped(nn.DataParallel(nn.Linear(2, 2)))
    Traceback (most recent call last):
    modelzip.errors.ModelError: the model is wrapped in DataParallel; give model.module instead
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        problem = f"is wrapped in {type(model).__name__}; give model.module instead"
    elif isinstance(model, (jit.ScriptModule, jit.ScriptFunction)):
        problem = "is TorchScript; give the eager model that it was scripted or traced from"
    elif isinstance(model, ExportedProgram):
        problem = "is an ExportedProgram; give the eager model that it was exported from"
    elif not isinstance(model, nn.Module):
        problem = f"is of class {type(model).__name__}; give a torch.nn.Module"
    elif "_orig_mod" in model._modules:
        problem = "is compiled; give model._orig_mod instead, and compile what comes out"
    elif isinstance(model, fx.GraphModule) and _is_exported(model):
        problem = "is a graph of torch.export's operators; give the eager model it came from"
    else:
        return
    raise ModelError(f"{source} {problem}")


def _is_exported(model: fx.GraphModule) -> bool:
    """Whether its layers have dissolved into operators; symbolic tracing leaves them whole."""
    return any(isinstance(node.target, OpOverload) for node in model.graph.nodes)
