"""Images through a VAE's codes and the archive's integer coder, beside JPEG and WebP.

    python benchmarks/generation.py [--out FOLDER] [--only NAME ...] [--images 10000]

Trains what FOLDER has no run of yet, each by recipes/fashion_mnist_vae.yaml with other settings,
and prints bits a pixel against PSNR on the first test images of Fashion-MNIST. The decoder is the
int8 file of the run, in onnxruntime. A code is the encoder's mean, rounded to steps that are in
each dimension a multiple of the mean deviation that the encoder gives codes of validation images.
Images in files of their own are the first 1,000, which stand for all; in a sheet they are all.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from modelzip.archive.integers.context import Decoder, Encoder
from modelzip.generate import generate
from modelzip.generation.joint import all_pixels
from modelzip.generation.sheet import tile
from modelzip.recipe import loader, sources
from modelzip.recipe.generation import build_companion
from modelzip.report.generation import read
from modelzip.runtime.session import load

RECIPE = Path(__file__).parent.parent / "recipes" / "fashion_mnist_vae.yaml"
MODELS = {  # name -> what is set otherwise than in the recipe
    "vae": (),
    "latent 32, beta 0.1": ("model.latent=32", "companion.latent=32", "companion.beta=0.1"),
    "latent 64, beta 0.02": ("model.latent=64", "companion.latent=64", "companion.beta=0.02"),
}
STEPS = (4.0, 3.0, 2.0, 1.0)  # of the deviation of a code
QUALITIES = (1, 5, 10, 20, 30, 50)
PEERS = ("JPEG", "WebP")
SCALES = (1, 2, 4)  # of sheets, whose pixels are means, and come back by bicubic interpolation
_PIXELS = 28 * 28
_FILES = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to store all images; `fixed` are the bytes of what decodes them, beside `bytes`."""

    how: str
    bytes: int
    psnr: float
    fixed: int = 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("runs/generation"))
    arguments.add_argument("--only", nargs="*", choices=[*MODELS], default=[*MODELS])
    arguments.add_argument("--images", type=int, default=10_000)
    given = arguments.parse_args()
    recipe = loader.load(RECIPE)
    images = all_pixels(sources.build_data(recipe).test)[: given.images]
    points = [p for name in given.only for p in learned(name, given.out, images)]
    files = {peer: list(one_by_one(peer, images)) for peer in PEERS}
    sheets = {
        peer: [list(in_a_sheet(peer, images, scale=scale)) for scale in SCALES] for peer in PEERS
    }
    report(points, len(images), files=files, sheets=sheets)


def learned(name: str, out: Path, images: Tensor) -> Iterator[Point]:
    """The images through the codes of one VAE, at several steps."""
    recipe = loader.load(RECIPE, overrides=MODELS[name])
    folder = out / name.replace(", ", "-").replace(" ", "")
    if not folder.exists():
        generate(recipe, out=folder, progress=False)
    companion = build_companion(recipe)
    companion.load_state_dict(load_file(folder / "companion.safetensors"))
    _, spread = companion.encode(all_pixels(sources.build_data(recipe).validation))
    deviation = (0.5 * spread).exp().mean(dim=0)
    mean, _ = companion.encode(images)
    decoder = load(folder / "model.onnx")
    for factor in STEPS:
        steps = factor * deviation
        data, codes = coded((mean / steps).round().to(torch.int32).numpy())
        found = torch.from_numpy(codes).float() * steps
        made = torch.cat([torch.from_numpy(decoder.run(c)[0]) for c in torch.split(found, 500)])
        yield Point(
            how=f"{name}, step {factor:g}",
            bytes=data + 4 * len(steps),
            psnr=psnr(made, images),
            fixed=read(folder).compressed.archive_bytes or 0,
        )


def coded(integers: NDArray[np.int32]) -> tuple[int, NDArray[np.int32]]:
    """The bytes that integers take in the archive's context coder, and what they decode to."""
    found = Encoder().encode(integers)
    again = Decoder().decode(found.data, found.params, integers.shape, integers.dtype)
    assert np.array_equal(again, integers)
    return len(found.data), again


def one_by_one(peer: str, images: Tensor) -> Iterator[Point]:
    """Each image as a file of its own: `_FILES` of them are, and stand for all."""
    some = images[:_FILES]
    pixels = (255 * some[:, 0]).round().byte().numpy()
    for quality in QUALITIES:
        stored = [lossy(image, peer, quality) for image in pixels]
        found = torch.from_numpy(np.stack([decoded for _, decoded in stored]))[:, None] / 255
        size = sum(n for n, _ in stored) * len(images) // len(some)
        yield Point(how=f"{peer} {quality}", bytes=size, psnr=psnr(found, some))


def in_a_sheet(peer: str, images: Tensor, *, scale: int) -> Iterator[Point]:
    """All images side by side in one file, `scale` times smaller a side."""
    sheet = tile(images)
    wanted = torch.tensor(sheet) / 255
    whole = Image.fromarray(sheet)
    small = np.asarray(whole.reduce(scale))
    for quality in QUALITIES:
        size, decoded = lossy(small, peer, quality)
        again = Image.fromarray(decoded).resize(whole.size, Image.Resampling.BICUBIC)
        found = torch.tensor(np.asarray(again)) / 255
        how = f"{peer} {quality}, one sheet" + (f" of 1/{scale} a side" if scale > 1 else "")
        yield Point(how=how, bytes=size, psnr=psnr(found, wanted))


def lossy(image: NDArray[np.uint8], peer: str, quality: int) -> tuple[int, NDArray[np.uint8]]:
    """The bytes of an image's file, and what it decodes to."""
    file = io.BytesIO()
    more = {"optimize": True} if peer == "JPEG" else {"method": 6}
    Image.fromarray(image).save(file, peer, quality=quality, **more)
    with Image.open(file) as found:
        return file.getbuffer().nbytes, np.asarray(found.convert("L"))


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Peak signal to noise ratio in decibels, of the mean over all pixels of whole greys."""
    error = ((255 * found).round() - (255 * wanted).round()) / 255
    return float(-10 * error.square().mean().log10())


def at(curves: Sequence[Sequence[Point]], size: int) -> str:
    """The best PSNR of a peer in `size` bytes, between two qualities by the logarithm of bytes."""
    found = []
    for curve in curves:
        ordered = sorted(curve, key=lambda p: p.bytes)
        if size >= ordered[0].bytes:
            sizes = np.log([p.bytes for p in ordered])
            found.append(float(np.interp(np.log(size), sizes, [p.psnr for p in ordered])))
    least = min((p for curve in curves for p in curve), key=lambda p: p.bytes)
    return f"{max(found):.2f}" if found else f"{least.psnr:.2f} in {least.bytes / size:.1f}x"


def report(
    points: Sequence[Point],
    count: int,
    *,
    files: dict[str, list[Point]],
    sheets: dict[str, list[list[Point]]],
) -> None:
    def bits(size: int) -> str:
        return f"{8 * size / (count * _PIXELS):.4f}"

    print(f"{count} images, PSNR in dB\n")
    peers: dict[str, Callable[[int], str]] = {}
    for peer in PEERS:
        peers[f"{peer}, one sheet"] = lambda size, peer=peer: at(sheets[peer], size)
        peers[f"{peer}, files"] = lambda size, peer=peer: at([files[peer]], size)
    print("| codes of | bits a pixel | with the decoder | PSNR |", " | ".join(peers), "|")
    print("|---|---|---|---|" + "---|" * len(peers))
    for p in points:
        beside = " | ".join(find(p.bytes + p.fixed) for find in peers.values())
        print(
            f"| {p.how} | {bits(p.bytes)} | {bits(p.bytes + p.fixed)} | {p.psnr:.2f} | {beside} |"
        )
    print("\n| peer | bits a pixel | PSNR |\n|---|---|---|")
    for curve in (*(c for curves in sheets.values() for c in curves), *files.values()):
        for p in curve:
            print(f"| {p.how} | {bits(p.bytes)} | {p.psnr:.2f} |")
    print("\n| decoder | archive |\n|---|---|")
    for name, size in {p.how.rsplit(", step", 1)[0]: p.fixed for p in points}.items():
        print(f"| {name} | {size / 1000:.1f} KB |")


if __name__ == "__main__":
    main()
