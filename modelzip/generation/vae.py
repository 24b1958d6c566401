"""A variational autoencoder: its encoder, which the decoder is trained and judged with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import checks
from modelzip.core.running import evaluating
from modelzip.data.base import Splits, generator_for
from modelzip.generation.companion import Companion, Given, Pairs
from modelzip.generation.joint import all_pixels, generator, train_jointly
from modelzip.train.loss import cosine, set_rate
from modelzip.zoo.generation import image_encoder

_CHUNK = 1000
_SAMPLES = 64
_NOISE = 20  # the stream of numbers that codes are drawn by


class Encoder(Companion):
    """Images to a Gaussian over codes, whose decoder is the model; see `vae_encoder`."""

    def __init__(
        self, *, latent: int, width: int, beta: float, epochs: float, lr: float, seed: int
    ) -> None:
        super().__init__()
        self.latent, self.beta, self.epochs, self.lr, self.seed = latent, beta, epochs, lr, seed
        self.layers = image_encoder(outputs=2 * latent, width=width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the codes of images [N, 1, 28, 28], each [N, latent]."""
        mean, log_variance = self.layers(images).float().chunk(2, dim=1)
        return mean, log_variance

    def check(self, model: nn.Module) -> None:
        """SettingError where `model` does not take this companion's codes."""
        generator(model, latent=self.latent)

    def given(self, data: Splits) -> Given:
        """Codes drawn for each image, and the image: what the decoder is given and owes."""
        parts, kl = {}, 0.0
        for stream, name in enumerate(("train", "validation", "test")):
            images = all_pixels(getattr(data, name))
            mean, log_variance = self.encode(images)
            noise = torch.randn(mean.shape, generator=generator_for(self.seed, _NOISE, stream))
            parts[name] = Pairs(codes=mean + (0.5 * log_variance).exp() * noise, images=images)
            kl = float(divergence(mean, log_variance).mean())  # of the last, the test images
        samples = torch.randn(_SAMPLES, self.latent, generator=generator_for(self.seed, _NOISE, 9))

        def scores(images: Tensor, wanted: Tensor) -> dict[str, float]:
            entropy = float(reconstruction(images, wanted))
            return {
                "negative ELBO, nats an image": entropy + kl,
                "reconstruction, nats an image": entropy,
                "squared error of a pixel": float(F.mse_loss(images, wanted)),
            }

        return Given(**parts, loss=reconstruction, scores=scores, samples=samples, paired=True)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, in parts, in eval mode and without gradients."""
        with evaluating(self):
            found = [self(part) for part in torch.split(images, _CHUNK)]
        return torch.cat([mean for mean, _ in found]), torch.cat([log for _, log in found])

    def train_with(
        self, model: nn.Module, data: Splits, *, batch_size: int, seed: int, progress: bool
    ) -> None:
        """Minimise the negative evidence lower bound over encoder and decoder."""
        decoder = generator(model, latent=self.latent)
        optimizer = torch.optim.Adam([*decoder.parameters(), *self.parameters()], lr=self.lr)

        def step(images: Tensor, _labels: Tensor, over: float) -> Tensor:
            set_rate(optimizer, cosine(self.lr, over))
            mean, log_variance = self(images)
            codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            logits = decoder.logits(codes).float()
            entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
            rate = self.beta * divergence(mean, log_variance)
            bound = entropy.flatten(1).sum(dim=1) + rate
            optimizer.zero_grad()
            loss = bound.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss

        train_jointly(
            [decoder, self],
            step,
            data,
            epochs=self.epochs,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )


def vae_encoder(
    *,
    latent: int = 16,
    width: int = 32,
    beta: float = 1.0,
    epochs: float = 8,
    lr: float = 2e-3,
    seed: int = 0,
) -> Encoder:
    """The encoder that a decoder, `modelzip.zoo:image_generator`, is trained with.

    Kingma & Welling 2014, https://arxiv.org/abs/1312.6114: codes have a standard Gaussian prior,
    pixels the cross entropy as if their grey were a probability. Afterwards the encoder stays as
    it is, so that whatever is done to the decoder, the divergence of codes and prior is the same:
    the evidence lower bound falls as much as the reconstruction gets worse.

    Args:
        latent: values of a code, as many as the decoder takes.
        width: channels at 7 x 7 pixels, even.
        beta: weight of the divergence in training alone; below 1 codes say more, and cost more to
            store. Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl.
        epochs, lr: of the training of both, with Adam and a cosine schedule.
        seed: of the codes that are drawn, one an image.

    >>> vae_encoder(latent=4, width=8)(torch.zeros(2, 1, 28, 28))[0].shape
    torch.Size([2, 4])
    """
    return Encoder(
        latent=checks.integer("latent", latent, low=1),
        width=width,
        beta=checks.positive("beta", beta),
        epochs=checks.positive("epochs", epochs),
        lr=checks.positive("lr", lr),
        seed=checks.integer("seed", seed, low=0),
    )


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over a code: [N, latent] to [N].

    >>> divergence(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)).tolist()
    [4.5]
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def reconstruction(outputs: Tensor, images: Tensor) -> Tensor:
    """Mean over images of the cross entropy of pixels in [0, 1], summed over an image: nats.

    >>> round(float(reconstruction(torch.full((2, 1, 1, 4), 0.5), torch.ones(2, 1, 1, 4))), 4)
    2.7726
    """
    return F.binary_cross_entropy(outputs, images, reduction="sum") / len(images)
