"""Bool masks over weights: True where a weight stays, False where it is pruned."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude_mask(weight: Tensor, sparsity: float, *, held: Tensor | None = None) -> Tensor:
    """Bool mask shaped like `weight`: False at the `sparsity` fraction of smallest |w|.

    Exactly round(sparsity * numel) entries are False. Ties break by flat index: the first goes
    first. Entries where `held`, a bool mask shaped like `weight`, is False go before all others,
    so a mask grown from an earlier one never brings an entry back.
    Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878.

    >>> magnitude_mask(torch.tensor([1., -3., 2.]), 1 / 3).tolist()
    [False, True, True]
    """
    return score_mask(weight.detach().abs(), sparsity, held=held)


def score_mask(scores: Tensor, sparsity: float, *, held: Tensor | None = None) -> Tensor:
    """Bool mask shaped like `scores`: False at the `sparsity` fraction of lowest scores.

    Scores may be negative. Counts, ties and `held` are as in `magnitude_mask`.

    >>> score_mask(torch.tensor([1., -3., 2.]), 1 / 3).tolist()
    [True, False, True]
    """
    order = torch.argsort(_held_last(scores, held).flatten(), stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[: round(sparsity * scores.numel())]] = False
    return mask.reshape(scores.shape)


def nm_mask(
    weight: Tensor,
    *,
    keep: int,
    group: int,
    dim: int = 1,
    held: Tensor | None = None,
    signed: bool = False,
) -> Tensor:
    """Bool mask shaped like `weight`: True at the `keep` largest |w| of each `group` along `dim`.

    With `signed` it is the `keep` largest w. The size of `dim` must be a multiple of `group`. Ties
    and `held` are as in `magnitude_mask`.
    Mishra et al. 2021, https://arxiv.org/abs/2104.08378.

    >>> nm_mask(torch.tensor([[1., 4., -3., 2.]]), keep=2, group=4).tolist()
    [[False, True, True, False]]
    """
    values = weight.detach() if signed else weight.detach().abs()
    scores = _held_last(values, held).movedim(dim, -1)
    groups = scores.reshape(*scores.shape[:-1], -1, group)
    order = torch.argsort(groups, dim=-1, stable=True)
    mask = torch.ones_like(groups, dtype=torch.bool)
    mask.scatter_(-1, order[..., : group - keep], False)
    whole: Tensor = mask.reshape(scores.shape).movedim(-1, dim)
    return whole.contiguous()


def block_norms(weight: Tensor, *, rows: int, columns: int) -> Tensor:
    """L2 norm of each block of `rows` x `columns` over the first two dimensions of `weight`.

    Shape (outputs, inputs, *kernel) becomes (outputs / rows, inputs / columns, *kernel), which
    must divide without rest: every tap of a kernel has blocks of its own.
    Narang et al. 2017, https://arxiv.org/abs/1711.02782.

    >>> block_norms(torch.tensor([[3., 1.], [4., 0.]]), rows=2, columns=1).tolist()
    [[5.0, 1.0]]
    """
    outputs, inputs, *kernel = weight.shape
    blocks = weight.reshape(outputs // rows, rows, inputs // columns, columns, *kernel)
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=(1, 3))
    return norms


def block_sums(scores: Tensor, *, rows: int, columns: int) -> Tensor:
    """Sum of each block, shaped as `block_norms`.

    >>> block_sums(torch.tensor([[3., 1.], [-4., 0.]]), rows=2, columns=1).tolist()
    [[-1.0, 1.0]]
    """
    outputs, inputs, *kernel = scores.shape
    blocks = scores.reshape(outputs // rows, rows, inputs // columns, columns, *kernel)
    return blocks.sum(dim=(1, 3))


def expand_blocks(mask: Tensor, *, rows: int, columns: int) -> Tensor:
    """The mask over weights that a mask over their blocks stands for.

    >>> expand_blocks(torch.tensor([[True, False]]), rows=1, columns=2).tolist()
    [[True, True, False, False]]
    """
    return mask.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)


def _held_last(scores: Tensor, held: Tensor | None) -> Tensor:
    return scores if held is None else scores.masked_fill(~held, -torch.inf)
