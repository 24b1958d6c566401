"""A generative adversarial network: its discriminator, which the generator is trained with."""

from __future__ import annotations

import copy
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import checks
from modelzip.core.running import evaluating
from modelzip.data.base import Splits, generator_for
from modelzip.generation.companion import Companion, Given, Pairs
from modelzip.generation.joint import all_pixels, generator, train_jointly
from modelzip.numerics.frechet import frechet_distance
from modelzip.train.loss import cosine, set_rate
from modelzip.zoo.generation import image_encoder
from modelzip.zoo.images import digits_cnn

_CHUNK = 1000
_SAMPLES = 64
_NOISE = 21  # the stream of numbers that codes are drawn by
_CLASSIFIER_LR = 3e-3
_AVERAGE = 0.998  # of the generator's weights, kept at each step
_BETAS = (0.5, 0.99)


class _How(TypedDict):
    batch_size: int
    seed: int
    progress: bool


class Discriminator(Companion):
    """Images to how real they look, with a classifier to judge by; see `gan_discriminator`."""

    def __init__(
        self,
        *,
        latent: int,
        width: int,
        epochs: float,
        lr: float,
        classifier_epochs: float,
        classes: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.latent, self.epochs, self.lr, self.seed = latent, epochs, lr, seed
        self.classifier_epochs = classifier_epochs
        self.layers = image_encoder(outputs=1, width=width)
        self.classifier = digits_cnn(width=16, classes=classes)

    def forward(self, images: Tensor) -> Tensor:
        """Log odds that images [N, 1, 28, 28] are real: [N]."""
        return self.layers(images).float().squeeze(1)  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> Tensor:
        """What the classifier's last layer is given: [N, 64], without gradients."""
        with evaluating(self.classifier):
            body = list(self.classifier.children())[:-1]
            return torch.cat([nn.Sequential(*body)(part) for part in torch.split(images, _CHUNK)])

    def check(self, model: nn.Module) -> None:
        """SettingError where `model` does not take this companion's codes."""
        generator(model, latent=self.latent)

    def given(self, data: Splits) -> Given:
        """Codes from a standard Gaussian, each with some image that has nothing to do with it."""
        parts = {}
        for stream, name in enumerate(("train", "validation", "test")):
            random = generator_for(self.seed, _NOISE, stream)
            images = all_pixels(getattr(data, name))
            parts[name] = Pairs(
                codes=torch.randn(len(images), self.latent, generator=random), images=images
            )
        samples = torch.randn(_SAMPLES, self.latent, generator=generator_for(self.seed, _NOISE, 9))
        return Given(**parts, loss=F.mse_loss, scores=self._scores, samples=samples, paired=False)

    def train_with(
        self, model: nn.Module, data: Splits, *, batch_size: int, seed: int, progress: bool
    ) -> None:
        """Train the classifier, then generator and discriminator; the generator's is a mean."""
        made = generator(model, latent=self.latent)
        how = _How(batch_size=batch_size, seed=seed, progress=progress)
        self._train_classifier(data, how)
        average = copy.deepcopy(made)
        real = torch.optim.Adam(self.layers.parameters(), lr=self.lr, betas=_BETAS)
        fake = torch.optim.Adam(made.parameters(), lr=self.lr, betas=_BETAS)

        def step(images: Tensor, _labels: Tensor, over: float) -> Tensor:
            for optimizer in (real, fake):
                set_rate(optimizer, cosine(self.lr, over))
            codes = torch.randn(len(images), self.latent, device=images.device)
            drawn = made(codes)
            # the discriminator: real images up, drawn ones down
            loss = F.softplus(-self(images)).mean() + F.softplus(self(drawn.detach())).mean()
            real.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            real.step()
            # the generator: drawn images up
            fake.zero_grad()
            F.softplus(-self(drawn)).mean().backward()  # type: ignore[no-untyped-call]
            fake.step()
            _move(average, made)
            return loss

        train_jointly([made, self.layers, average], step, data, epochs=self.epochs, **how)
        made.load_state_dict(average.state_dict())
        self.eval()

    def _train_classifier(self, data: Splits, how: _How) -> None:
        optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=_CLASSIFIER_LR)

        def step(images: Tensor, labels: Tensor, over: float) -> Tensor:
            set_rate(optimizer, cosine(_CLASSIFIER_LR, over))
            loss = F.cross_entropy(self.classifier(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss

        train_jointly([self.classifier], step, data, epochs=self.classifier_epochs, **how)

    def _scores(self, images: Tensor, wanted: Tensor) -> dict[str, float]:
        distance = frechet_distance(self.features(images), self.features(wanted))
        return {"Frechet distance": distance}


def gan_discriminator(
    *,
    latent: int = 64,
    width: int = 32,
    epochs: float = 8,
    lr: float = 5e-4,
    classifier_epochs: float = 3,
    classes: int = 10,
    seed: int = 0,
) -> Discriminator:
    """The discriminator that a generator, `modelzip.zoo:image_generator`, is trained with.

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661, with the loss that does not saturate;
    the generator that is left has the running mean of the weights. What it makes is judged by the
    Frechet distance from real images of the 64 features that a small classifier of the labels,
    trained first, has of them, as Heusel et al. 2017 do with another classifier. A fine-tuning
    has to have `distill: true` and `distill_weight: 1`: no image is the right one for a code.

    Args:
        latent: values of a code, as many as the generator takes.
        width: channels at 7 x 7 pixels, even.
        epochs, lr: of generator and discriminator, with Adam and a cosine schedule.
        classifier_epochs: of the classifier of `classes` classes.
        seed: of the codes that are drawn, one an image.

    >>> gan_discriminator(latent=4, width=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2])
    """
    return Discriminator(
        latent=checks.integer("latent", latent, low=1),
        width=width,
        epochs=checks.positive("epochs", epochs),
        lr=checks.positive("lr", lr),
        classifier_epochs=checks.positive("classifier_epochs", classifier_epochs),
        classes=checks.integer("classes", classes, low=2),
        seed=checks.integer("seed", seed, low=0),
    )


@torch.no_grad()
def _move(average: nn.Module, made: nn.Module) -> None:
    """Bring the running mean of weights, and of statistics, nearer to those there are."""
    ours, theirs = average.state_dict(), made.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], 1 - _AVERAGE)
