"""`nn.MultiheadAttention` with fewer heads than it was built with.

PyTorch's own takes the width of a head from that of the embedding, so that it cannot lose one,
though most models need few of their heads (Michel et al. 2019, https://arxiv.org/abs/1905.10650).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from modelzip.core import surgery
from modelzip.core.channels.slots import Slot
from modelzip.errors import ModelError


class PrunedAttention(nn.MultiheadAttention):
    """Multi-head attention whose heads need not fill the embedding width; see `keep_heads`.

    Called like `nn.MultiheadAttention`, with tensors of the same names that are smaller along the
    heads: `in_proj_weight` is (3 * num_heads * head_dim, E), `out_proj.weight` (E, num_heads *
    head_dim). A mask of three axes may have rows for the heads left, or for all there once were.

    Attributes:
        heads: the numbers of the heads left, among those it was built with.
        heads_before: how many it was built with.
    """

    heads: tuple[int, ...]
    heads_before: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention's output, and with `need_weights` its weights, over all heads or of each.

        Raises:
            ModelError: `is_causal` without a mask; it is but a hint of what is in the mask.
        """
        if is_causal and attn_mask is None:
            raise ModelError("is_causal says what kind of mask attn_mask is; give attn_mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            part.reshape(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for part in self._extended(*self._projected(query, key, value))
        )
        mask = self._mask(attn_mask, key_padding_mask, query)
        output, weights = self._attend(q, k, v, mask, need_weights)
        output = F.linear(
            output.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias
        )
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads} of {self.heads_before}, head_dim={self.head_dim}"

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in given)

    def _extended(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values with those that the module adds of its own."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask(self, attn: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """What is added to the scores (batch, heads, queries, keys), or can be broadcast to it."""
        parts = []
        if attn is not None and attn.dim() == 3:
            there = len(attn) // len(query)
            attn = attn.reshape(-1, there, *attn.shape[1:])
            parts.append(attn[:, list(self.heads)] if there == self.heads_before else attn)
        elif attn is not None:
            parts.append(attn[None, None])
        if padding is not None:
            parts.append(padding[:, None, None])
        added = (self.bias_k is not None) + self.add_zero_attn
        mask = None
        for part in parts:
            if part.dtype == torch.bool:
                part = torch.zeros_like(part, dtype=query.dtype).masked_fill(part, -torch.inf)
            mask = part if mask is None else mask + part
        return mask if mask is None or not added else F.pad(mask, (0, added))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout)
        return weights @ v, weights


def can_lose_heads(module: nn.Module) -> bool:
    """Whether `module` is PyTorch's own attention, pruned or not, and no class derived from it."""
    return type(module) in (nn.MultiheadAttention, PrunedAttention)


def keep_heads(module: nn.MultiheadAttention, channels: Tensor) -> None:
    """Keep only `channels` of the slot "out" of attention, in place: whole heads, ascending.

    It becomes a `PrunedAttention`. Its output projection, a Linear, is left for `resize` to cut.

    >>> attention = nn.MultiheadAttention(8, 4)
    >>> keep_heads(attention, torch.tensor([0, 1, 6, 7]))
    >>> attention.num_heads, list(attention.in_proj_weight.shape)
    (2, [12, 8])
    """
    width = module.num_heads * module.head_dim
    rows = torch.cat([channels, channels + width, channels + 2 * width])
    along = {"in_proj_weight": (0, rows), "in_proj_bias": (0, rows)}
    along |= dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), (0, channels))
    along |= dict.fromkeys(("bias_k", "bias_v"), (2, channels))
    for name, (axis, index) in along.items():
        old = module._parameters.get(name)
        if old is not None:
            new = old.detach().index_select(axis, index.to(old.device))
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    left = (channels[:: module.head_dim] // module.head_dim).tolist()
    pruned = _as_pruned(module)
    pruned.heads = tuple(pruned.heads[head] for head in left)
    pruned.num_heads = len(left)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, PyTorch's own layers run as they do in training, not as one operation.

    That leaves zeros in padding, which is as good as any value there.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def plain_encoders(model: nn.Module) -> None:
    """Stop encoders with a `PrunedAttention` in them from passing on nested tensors."""
    for module in model.modules():
        pruned = any(isinstance(inner, PrunedAttention) for inner in module.modules())
        if isinstance(module, nn.TransformerEncoder) and pruned:
            module.use_nested_tensor = False


def attention_channels(
    model: nn.Module, names: Iterable[str]
) -> tuple[list[dict[Slot, Tensor]], dict[str, str]]:
    """For each `nn.MultiheadAttention` among `names`, what goes with its heads, as in `Bundle`.

    Channels are (heads, width of a head). Nothing else hangs on them: the embedding stays as wide
    as it is. Those whose heads must stay are in the second mapping, with the reason.

    >>> found, reasons = attention_channels(nn.Sequential(nn.MultiheadAttention(8, 4)), ["0"])
    >>> [(slot.layer, slot.side, list(index.shape)) for slot, index in found[0].items()]
    [('0', 'out', [4, 2]), ('0.out_proj', 'in', [4, 2])]
    """
    tied = {
        name.rpartition(".")[0]: " and ".join(group)
        for group in surgery.tied_parameters(model)
        for name in group
    }
    found, reasons = [], {}
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.MultiheadAttention):
            continue
        parts = [n for n, _ in module.named_modules(prefix=name)]
        if any(is_parametrized(part) for part in module.modules()):
            reasons[name] = "computes its weights; prune heads before that is attached"
        elif not can_lose_heads(module):
            reasons[name] = f"is a {type(module).__name__}, whose forward may count its heads"
        elif hit := next((part for part in parts if part in tied), None):
            reasons[name] = f"{tied[hit]} are tied"
        elif module.num_heads == 1:
            reasons[name] = "has one head"
        else:
            index = torch.arange(module.num_heads * module.head_dim).view(-1, module.head_dim)
            into = f"{name}.out_proj" if name else "out_proj"
            found.append({Slot(name, "out"): index, Slot(into, "in"): index.clone()})
    return found, reasons


def _as_pruned(module: nn.MultiheadAttention) -> PrunedAttention:
    """`module` itself, with the class and the attributes of one that can have fewer heads."""
    if isinstance(module, PrunedAttention):
        return module
    module.__class__ = PrunedAttention
    pruned = cast(PrunedAttention, module)
    pruned.heads, pruned.heads_before = tuple(range(module.num_heads)), module.num_heads
    # nn.TransformerEncoderLayer reads this, and would run an operation of its own instead
    pruned._qkv_same_embed_dim = False
    return pruned
