"""Rewinding: what pruning has left goes back to the weights it had early in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from modelzip.core import early, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.selection import select
from modelzip.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Rewind(Pass):
    """Put the weights and buffers back to those in a file; zeros and removed channels stay.

    For a lottery ticket: train, prune, rewind to the weights after a small part of the training,
    and train the rest again. With weights from the very start this is Frankle & Carbin 2019,
    https://arxiv.org/abs/1803.03635; large models need those of an early epoch, Frankle et al.
    2020, https://arxiv.org/abs/1912.05671. To rewind the learning rate alone, which is often
    as good (Renda et al. 2020, https://arxiv.org/abs/2003.02389), no pass is needed: repeat the
    first fine-tuning after pruning. The file of weights that a recipe starts from rewinds to before
    its first step.

    Args:
        weights: a safetensors file of the same model, relative to the current folder: its plain
            tensors, or a checkpoint of modelzip, from before or after its channels were pruned.
        targets: modules that go back, with their own parameters and buffers.

    >>> import modelzip as mz, tempfile, pathlib
    >>> from safetensors.torch import save_file
    >>> path, model = pathlib.Path(tempfile.mkdtemp()) / "early.safetensors", nn.Linear(2, 1)
    >>> save_file({"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.ones(1)}, path)
    >>> model.weight.data = torch.tensor([[0.1, 5.0]])
    >>> ticket = mz.prepare(model, [mz.MagnitudePrune(sparsity=0.5), mz.Rewind(weights=str(path))])
    >>> ticket.convert().weight.tolist()
    [[0.0, 4.0]]
    """

    name: ClassVar[str] = "rewind"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.NOTHING
    attaches: ClassVar[bool] = False

    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.weights, str) or not self.weights:
            raise SettingError(
                f"weights must be the path of a safetensors file, got {self.weights!r}"
            )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Copy the weights in.

        Raises:
            SelectionError: targets and skip leave no module.
            ModelError: a weight is computed by the user's own parametrization.
            SettingError: there is no such file, or it does not fit the model.
        """
        path = str(self.weights)
        chosen = select(
            model,
            kinds=self.kinds,
            targets=self.targets,
            skip=self.skip,
            where=lambda module: bool(surgery.own_tensors(module)),
        )
        surgery.refuse_computed(chosen, pass_name=self.name)
        surgery.refuse_replaced(chosen, pass_name=self.name)
        state = early.fit(early.read(path), model, context.earlier, path=path)
        back = {
            name: tensor
            for name, tensor in early.plain(model.state_dict()).items()
            if name.rpartition(".")[0] in chosen
        }
        with torch.no_grad():
            for name, tensor in back.items():
                tensor.copy_(state[name])
        layers = dict.fromkeys(name.rpartition(".")[0] for name in back)
        context.record["layers"] = list(layers)
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return model  # the checkpoint has the weights of now

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        """Report the modules that went back; the work was done in `prepare`."""
        modules = dict(model.named_modules())
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(
                _row(name, modules[name], note=f"back to {self.weights}")
                for name in context.record["layers"]
                if name in modules  # a later pass may have folded a batch norm away
            ),
        )


def _row(name: str, module: nn.Module, *, note: str) -> LayerReport:
    count, nonzero = surgery.parameter_counts(module)
    return LayerReport(
        name=name,
        kind=type(module).__name__.removeprefix("Parametrized"),
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        note=note,
    )
