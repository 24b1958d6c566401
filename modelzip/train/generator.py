"""Fine-tuning without data: a generator learns to make the images that the student trains on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam

from modelzip.core.running import frozen
from modelzip.data.base import generator_for
from modelzip.data.checking import logits
from modelzip.errors import DataError, ModelError
from modelzip.train.batch_statistics import compared
from modelzip.train.source import Source

log = logging.getLogger(__name__)

STEPS_AN_EPOCH = 200  # as the paper; an epoch is what is between two validations
_LATENT = 64
_LR = 1e-3
_SCALE_LR = 2e-2  # of the last norm, which must find the scale of images wherever it is
_STATISTICS_WEIGHT = 1.0  # of the statistics beside the cross entropy


class ConditionalGenerator(nn.Module):
    """Noise [N, latent] and labels [N] to images [N, C, H, W], through a quarter of that size.

    A last batch norm gives each channel a scale of its own, which training finds.

    >>> net = ConditionalGenerator((3, 30, 30), classes=10, width=4)
    >>> net(torch.randn(2, net.latent), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 30, 30])
    """

    def __init__(
        self, shape: Sequence[int], *, classes: int, latent: int = _LATENT, width: int = 32
    ) -> None:
        super().__init__()
        channels, height, self.latent = shape[0], shape[1:], latent
        self.sizes = [[-(-side // by) for side in height] for by in (4, 2, 1)]
        self.width = 2 * width
        self.embed = nn.Embedding(classes, latent)
        start = self.width * self.sizes[0][0] * self.sizes[0][1]
        self.spread = nn.Linear(latent, start)
        self.first = nn.BatchNorm2d(self.width)
        self.middle = _block(self.width, self.width)
        self.last = nn.Sequential(
            *_block(self.width, width), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()
        )
        self.scale = nn.BatchNorm2d(channels)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        found = self.spread(noise * self.embed(labels))
        found = self.first(found.view(-1, self.width, *self.sizes[0]))
        found = self.middle(F.interpolate(found, size=self.sizes[1]))
        found = self.last(F.interpolate(found, size=self.sizes[2]))
        return self.scale(found)  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


def check_teacher(teacher: nn.Module, shape: Sequence[int]) -> None:
    """Raise where a generator of images of `shape` cannot learn from `teacher`.

    DataError for a shape other than [C, H, W], ModelError for no trained batch norm.
    """
    if len(shape) != 3:
        raise DataError(
            f"data: generator makes images, C x H x W, got inputs of shape {list(shape)}; "
            "train on data, or on synthetic ones, calibration: synthetic"
        )
    with compared(teacher):
        pass  # it looks at the norms


@dataclass(kw_only=True)
class Generated(Source):
    """Batches of a generator that learns beside the student: first alone, then a step a batch.

    Its images are to be of the class they were asked for, says the teacher, and to have the batch
    statistics of the teacher's training. The student's batch norms keep their statistics. GDFQ:
    Xu et al. 2020, https://arxiv.org/abs/2003.03603.

    Args:
        teacher: in eval mode, with batch norms; its parameters are untouched.
        shape: [C, H, W] of an image.
        warmup: steps of the generator before the first batch.
    """

    teacher: nn.Module
    shape: Sequence[int]
    classes: int
    batch_size: int
    warmup: int
    seed: int
    device: torch.device
    bfloat16: bool
    warm: bool = False
    _net: ConditionalGenerator = field(init=False)
    _optimizer: Adam = field(init=False)

    def __post_init__(self) -> None:
        check_teacher(self.teacher, self.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._net = ConditionalGenerator(self.shape, classes=self.classes).to(self.device)
        scale = list(self._net.scale.parameters())
        rest = [p for name, p in self._net.named_parameters() if not name.startswith("scale.")]
        groups = [{"params": rest, "lr": _LR}, {"params": scale, "lr": _SCALE_LR}]
        self._optimizer = Adam(groups)

    @property
    def samples(self) -> int:
        return 0

    @property
    def per_epoch(self) -> int:
        return STEPS_AN_EPOCH

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = generator_for(self.seed, epoch, 2)  # not the stream of any other
        if not self.warm:
            log.info("training the generator alone for %d steps", self.warmup)
            for _ in range(self.warmup):
                self.step(draws)
            self.warm = True
        for _ in range(STEPS_AN_EPOCH):
            yield self.step(draws)

    def step(self, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Train the generator on one batch, and return that batch without its graph."""
        noise = torch.randn(self.batch_size, self._net.latent, generator=draws).to(self.device)
        labels = torch.randint(self.classes, (self.batch_size,), generator=draws).to(self.device)
        self._net.train()
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)
        with torch.enable_grad(), frozen(self.teacher), compared(self.teacher) as gap:
            with cast:
                images = self._net(noise, labels)
                outputs = self.teacher(images)
            outputs = logits(outputs, model=self.teacher, classes=self.classes).float()
            value = F.cross_entropy(outputs, labels) + _STATISTICS_WEIGHT * gap.take()
            if not bool(torch.isfinite(value)):
                raise ModelError(
                    "the loss of the generator is not finite; look for NaN in the teacher's weights"
                )
            self._optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return images.detach().float(), labels

    def hold(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def tensors(self) -> dict[str, Tensor]:
        found = {f"net.{name}": value for name, value in self._net.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, key = name.partition(".")
            parts[kind][key] = value
        self._net.load_state_dict(parts["net"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.warm = True
