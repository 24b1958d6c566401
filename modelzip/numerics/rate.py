"""Integers for a weight that take few bits once they are entropy-coded."""

from __future__ import annotations

import torch
from torch import Tensor

from modelzip.numerics.rounding import round_columns, solve_target

TOP = 127  # of the integers
_SWEEPS = 8
_SHARE = 64  # scales are the step times a multiple of 1/64: they are stored, too
_NARROW, _WIDE = 0.5, 2.0  # between which a scale may be of the step
_UNSEEN = 0.3  # added to how often each integer is there


def rate_distortion_integers(
    weight: Tensor, gram: Tensor, *, step: float, price: float, cross: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Integers q, shaped like `weight`, and a scale s for each row: s q x is near W x, in few bits.

    Minimises the squared error over the inputs that `gram` summarises plus `price` for each bit,
    in units of step^2 times the mean diagonal of `gram`: rounded column by column as in GPTQ
    (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), then integers one by one and scales in
    turns. Bits are those of an ideal static code, as in the rate-distortion optimised quantization
    of video coders (Sullivan & Wiegand 1998, https://doi.org/10.1109/79.733497). Zeros stay zero.

    Args:
        weight: W, [rows, d].
        gram: sum of x x^T over the inputs x that the rounded weight will see, [d, d].
        step: of the grid, above 0; scales are multiples of step / 64 between half and twice of it.
        price: of a bit, from 0.
        cross: sum of y x^T, where W was meant to see y in place of x; `gram` where None.

    >>> weight = torch.tensor([[0.4, 3.1]])
    >>> rate_distortion_integers(weight, torch.eye(2), step=1.0, price=0.0)[0].tolist()
    [[0.0, 3.0]]
    """
    gram, target = solve_target(weight, gram, gram if cross is None else cross)
    keep = weight != 0
    scale = torch.full((len(weight),), step, dtype=torch.float64)
    integers = round_columns(target, gram, scale, keep, top=TOP)
    diagonal = gram.diagonal()
    price = price * step * step * float(diagonal.mean())
    for _ in range(_SWEEPS):
        before = integers.clone()
        bits = code_lengths(integers, top=min(TOP, int(integers.abs().max()) + 1))
        gradient = (integers * scale[:, None] - target) @ gram
        for column in range(integers.shape[1]):
            old = integers[:, column]
            wanted = old - gradient[:, column] / (diagonal[column] * scale)
            new = _cheapest(wanted, diagonal[column] * scale.square(), bits, price)
            new = new * keep[:, column]
            gradient += ((new - old) * scale)[:, None] * gram[column]
            integers[:, column] = new
        scale = _fitted(integers, target, gram, scale, step)
        if torch.equal(before, integers):
            break
    return integers.to(weight.dtype), scale.to(weight.dtype)


def code_lengths(integers: Tensor, *, top: int) -> Tensor:
    """Bits of each integer from -top to top in an ideal static code for `integers`, float64.

    An integer and its negative take the same; what is not there takes more than all others.

    >>> code_lengths(torch.tensor([0.0] * 99 + [1.0]), top=1).round().tolist()
    [7.0, 0.0, 7.0]
    """
    count = torch.bincount((integers.flatten() + top).long(), minlength=2 * top + 1).double()
    count = (count + count.flip(0)) / 2 + _UNSEEN
    return -(count / count.sum()).log2()


def _cheapest(wanted: Tensor, curvature: Tensor, bits: Tensor, price: float) -> Tensor:
    top = len(bits) // 2
    low = wanted.floor()
    options = torch.stack([low, low + 1, torch.zeros_like(low)]).clamp(-top, top)
    costs = curvature * (options - wanted).square() + price * bits[(options + top).long()]
    return options.gather(0, costs.argmin(0, keepdim=True))[0]


def _fitted(integers: Tensor, target: Tensor, gram: Tensor, scale: Tensor, step: float) -> Tensor:
    """The scale of least error for each row, of those that can be stored."""
    along = integers @ gram
    wanted = (along * target).sum(1) / (along * integers).sum(1).clamp_min(1e-30)
    shares = (wanted / step * _SHARE).round().clamp(_NARROW * _SHARE, _WIDE * _SHARE)
    return torch.where(wanted > 0, shares * (step / _SHARE), scale)
