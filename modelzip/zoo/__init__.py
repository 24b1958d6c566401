"""Small models to compress, and building any model from "module:function" and a weights file."""

from modelzip.zoo.building import build, load_weights, refuse_nan
from modelzip.zoo.encoders import (
    Attention,
    Encoder,
    EncoderLayer,
    TextEncoder,
    encoder,
    text_encoder,
)
from modelzip.zoo.generation import ImageGenerator, image_encoder, image_generator
from modelzip.zoo.images import ResidualBlock, ResNet, depthwise_cnn, digits_cnn, resnet20, resnet56
from modelzip.zoo.text import TextCNN, text_cnn

__all__ = [
    "Attention",
    "Encoder",
    "EncoderLayer",
    "ImageGenerator",
    "ResNet",
    "ResidualBlock",
    "TextCNN",
    "TextEncoder",
    "build",
    "depthwise_cnn",
    "digits_cnn",
    "encoder",
    "image_encoder",
    "image_generator",
    "load_weights",
    "refuse_nan",
    "resnet20",
    "resnet56",
    "text_cnn",
    "text_encoder",
]
