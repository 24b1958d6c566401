"""Generators of images: what they are trained and judged with."""

from modelzip.generation.companion import Companion, Given, Pairs, made
from modelzip.generation.finetune import check_fits, check_settings, finetune_generator
from modelzip.generation.gan import Discriminator, gan_discriminator
from modelzip.generation.sheet import check_pillow, write_sheet
from modelzip.generation.vae import Encoder, vae_encoder

__all__ = [
    "Companion",
    "Discriminator",
    "Encoder",
    "Given",
    "Pairs",
    "check_fits",
    "check_pillow",
    "check_settings",
    "finetune_generator",
    "gan_discriminator",
    "made",
    "vae_encoder",
    "write_sheet",
]
