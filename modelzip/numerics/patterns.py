"""Patterns of zeros: single weights, N of every M inputs, or whole blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelzip.errors import SettingError
from modelzip.numerics.masks import block_norms, block_sums, expand_blocks, nm_mask, score_mask


@dataclass(frozen=True)
class Pattern:
    """What is pruned as one: `rows` outputs by `columns` inputs; or all but `keep` of `columns`."""

    rows: int = 1
    columns: int = 1
    keep: int | None = None

    @property
    def sparsity(self) -> float | None:
        """The sparsity that an N:M pattern has by itself."""
        return None if self.keep is None else 1 - self.keep / self.columns

    def misfit(self, outputs: int, inputs: int) -> str:
        """Why the pattern does not fit a weight of these sizes, or "".

        >>> parse("4x1").misfit(10, 3)
        '10 outputs are not a multiple of 4'
        """
        if inputs % self.columns:
            return f"{inputs} inputs are not a multiple of {self.columns}"
        return f"{outputs} outputs are not a multiple of {self.rows}" if outputs % self.rows else ""

    def masks(
        self,
        weights: Sequence[Tensor],
        held: Sequence[Tensor],
        sparsity: float,
        *,
        signed: bool = False,
    ) -> list[Tensor]:
        """Masks of `weights`, ranked together, within the masks `held` that are there already.

        Weights have shape (outputs, inputs, *kernel). Exactly round(sparsity * blocks) blocks
        become zero; of an N:M pattern, floor(sparsity * M) weights of each M. What ranks lowest
        goes: by magnitude, a block by its L2 norm; or if `signed` by value, a block by its sum.
        """
        present = [torch.where(h, w.detach(), 0.0) for w, h in zip(weights, held, strict=True)]
        if self.keep is not None:
            keep = self.columns - int(sparsity * self.columns + 1e-9)
            return [
                nm_mask(w, keep=keep, group=self.columns, held=h, signed=signed) & h
                for w, h in zip(present, held, strict=True)
            ]
        grain = {"rows": self.rows, "columns": self.columns}
        ranks = [(block_sums if signed else block_norms)(w, **grain) for w in present]
        alive = [block_norms(h.float(), **grain) > 0 for h in held]
        flat = score_mask(
            torch.cat([r.flatten() for r in ranks]),
            sparsity,
            held=torch.cat([a.flatten() for a in alive]),
        )
        parts = torch.split(flat, [r.numel() for r in ranks])
        return [
            expand_blocks(part.reshape(r.shape), **grain) & h
            for part, r, h in zip(parts, ranks, held, strict=True)
        ]


def parse(text: str) -> Pattern:
    """The pattern that `text` names: "unstructured", "N:M" such as "2:4", or "RxC" such as "4x1".

    >>> parse("2:4")
    Pattern(rows=1, columns=4, keep=2)
    """
    if text == "unstructured":
        return Pattern()
    found = re.fullmatch(r"([1-9]\d*)([:x])([1-9]\d*)", text) if isinstance(text, str) else None
    if found is not None:
        first, second = int(found[1]), int(found[3])
        if found[2] == "x":
            return Pattern(rows=first, columns=second)
        if first < second:
            return Pattern(columns=second, keep=first)
    raise SettingError(
        "pattern must be 'unstructured', N:M such as '2:4' with N below M, or blocks such as "
        f"'4x1', got {text!r}"
    )
