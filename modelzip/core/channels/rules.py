"""What each op does to labels, by its name in `torch.ops.aten`.

Ops that move elements are applied to the labels themselves; the other rules say where channels
meet, are counted, or are read by a layer. What has no rule bars the channels that reach it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from modelzip.core.channels import meeting, moving, products
from modelzip.core.channels.calls import Call, Labelled

Rule = Callable[[Call], Labelled]


def rule(call: Call) -> Rule | None:
    """The rule for `call`, or None."""
    if call.name in RULES:
        return RULES[call.name]
    if call.op.is_view or torch.Tag.inplace_view in call.op.tags:
        return moving.move
    if meeting.SPATIAL.search(call.name):
        return meeting.spatial
    packet = getattr(torch.ops.aten, call.name, None)
    plain = getattr(packet, call.op._overloadname, call.op)  # only the op out of place has tags
    if torch.Tag.pointwise in {*plain.tags, *call.op.tags}:
        return meeting.pointwise
    return meeting.reduce if call.name in _REDUCTIONS else None


def starts(name: str) -> bool:
    """Whether an op of this name gives labels to an output, though no input may have one."""
    return name in _STARTING


def nothing(call: Call) -> Labelled:
    """The outputs carry no channels of the inputs."""
    return None


_STARTING = {"convolution", "addmm", "mm", "embedding"}

_REDUCTIONS = {
    *("mean", "sum", "nansum", "prod", "amax", "amin", "max", "min", "aminmax", "argmax", "argmin"),
    *("any", "all", "count_nonzero", "std", "var", "std_mean", "var_mean", "norm", "logsumexp"),
    *("linalg_vector_norm", "median", "nanmedian", "mode", "kthvalue"),
}

_NAMES: dict[Rule, str] = {
    moving.move: "_unsafe_view unsafe_split unsafe_split_with_sizes",
    moving.rearrange: (
        "flip roll repeat index index_select index_put gather scatter slice_scatter "
        "select_scatter im2col pixel_unshuffle"
    ),
    moving.shuffle: "pixel_shuffle channel_shuffle",
    moving.join: "cat stack",
    moving.pad: "constant_pad_nd",
    meeting.pointwise: (  # those without the tag, and tensors made in the shape of another
        "clone _to_copy lift_fresh _prelu_kernel hardswish rrelu_with_noise log_sigmoid_forward "
        "native_dropout bernoulli tril triu zero fill normal uniform "
        "zeros_like ones_like empty_like full_like rand_like randn_like"
    ),
    meeting.copy: "copy",
    meeting.glu: "glu",
    meeting.norm: (
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training"
    ),
    meeting.layer_norm: "native_layer_norm _fused_rms_norm",
    meeting.group_norm: "native_group_norm",
    meeting.mix: (
        "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin sort "
        "argsort topk"
    ),
    products.convolve: "convolution",
    products.multiply: "mm addmm bmm baddbmm",
    products.embed: "embedding",
    nothing: "new_empty new_zeros new_ones new_full",
}
RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
