"""The device, the precision, and the other processes where there are any, through accelerate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """This process among those that `accelerate launch` started; without it, the only one.

    The model is not wrapped: gradients are averaged after the backward pass, so passes see the
    same modules as in a loop of one process, and parameters without a gradient are no trouble.
    """

    def __init__(self) -> None:
        from accelerate import PartialState  # loads slowly, and only training needs it
        from accelerate.utils import parse_flag_from_env

        # told so, or with no accelerator here: else accelerate would not join CPU processes
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=cpu)
        self.device: torch.device = self._state.device
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.index == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        self._state.wait_for_everyone()

    def moved(self, batch: Any) -> Any:
        """A tensor, or nested tuples, lists and dicts of them, on this process's device."""
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.device)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        from accelerate.utils import reduce

        summed = reduce(torch.tensor(values, dtype=torch.float32, device=self.device), "sum")
        return [float(v) for v in summed]

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> float:
        """Average gradients over all processes, in place, and return the average loss."""
        if self.count == 1:
            return float(loss.detach())
        from accelerate.utils import reduce

        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), loss.detach().view(1)])
        mean = reduce(flat, "mean")
        for grad, part in zip(grads, mean[:-1].split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
        return float(mean[-1])

    def agree(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.copy_(broadcast(tensor.detach().clone()))


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; "auto" does where the processor computes it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """`model` on `device` inside, convolutions channels-last; where and as it was afterwards."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    home = device if first is None else first.device
    images = any(isinstance(m, nn.Conv2d) for m in model.modules())
    plain = all(p.is_contiguous() for p in model.parameters())
    model.to(device)
    if images:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(home)
        if images and plain:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
