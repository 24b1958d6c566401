"""`modelzip data pack | info | unpack | bench`: datasets in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from modelzip.cli.app import app, say
from modelzip.errors import SettingError

data_app = typer.Typer(
    help="Pack a dataset into one file, look into it, and time it.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
FilePath = Annotated[Path, typer.Argument(metavar="FILE", help="A packed dataset.")]


@data_app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help='"module:function" of a recipe\'s data: build.'),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, such as train.mzd.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045  typer reads the annotation at run time
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of SOURCE; repeat for more."),
    ] = None,
    codec: Annotated[str, typer.Option(help="zstd, lzma, store, png, webp, ...")] = "zstd",
    filters: Annotated[str, typer.Option(help="auto, or names with commas between.")] = "auto",
    level: Annotated[Optional[int], typer.Option(help="Of zstd.")] = None,  # noqa: UP045
    chunk: Annotated[int, typer.Option(help="Samples that are read together.")] = 256,
    single: Annotated[bool, typer.Option("--single", help="Code samples one by one.")] = False,
    bits: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Keep so many of uint8's 8 bits."),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Round floats to float16, int8 or uint8."),
    ] = None,
    threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Floats of less magnitude become 0."),
    ] = None,
    noise: Annotated[bool, typer.Option("--noise", help="Read what was rounded as noise.")] = False,
    jpeg: Annotated[Optional[int], typer.Option(help="Quality, 1 to 100.")] = None,  # noqa: UP045
    webp: Annotated[Optional[int], typer.Option(help="Quality, 1 to 100.")] = None,  # noqa: UP045
) -> None:
    """Write a split of SOURCE into one file; without loss unless asked for.

    Example: modelzip data pack modelzip.data:cifar10 -o train.mzd --set validation=1
    """
    import modelzip.data as data

    splits = data.build(source, **_arguments(arguments or []))
    if split not in ("train", "validation", "test"):
        raise SettingError(f"--split must be train, validation or test, got {split!r}")
    packed = data.pack(
        getattr(splits, split),
        out,
        codec=codec,
        filters=filters if filters == "auto" else [name for name in filters.split(",") if name],
        level=level,
        chunk=chunk,
        single=single,
        bits=bits,
        dtype=dtype,
        threshold=threshold,
        noise=noise,
        jpeg=jpeg,
        webp=webp,
        progress=True,
    )
    typer.echo(
        f"{out}: {packed.count} samples, {packed.after / 1000:.1f} KB of "
        f"{packed.before / 1000:.1f} KB, {packed.factor:.2f}x fewer"
    )


@data_app.command()
def info(
    file: FilePath,
    check: Annotated[bool, typer.Option("--check", help="Read every sample.")] = False,
) -> None:
    """Show what FILE holds and how; with --check exit status 1 if samples are lost.

    Example: modelzip data info train.mzd --check
    """
    from modelzip.data import PackedDataset

    data = PackedDataset(file)
    form, size = data.form, file.stat().st_size
    loss = "without loss" if form.lossless else "with loss"
    for name, value in {
        "samples": f"{len(data)} in chunks of {form.chunk}{', one by one' * form.single}",
        "inputs": "bytes" if form.text else f"{form.dtype} {list(form.shape or ['any length'])}",
        "kept": f"{' '.join((*form.filters, form.codec))}, {loss}",
        "bytes": f"{size}, {size / len(data):.1f} a sample",
    }.items():
        typer.echo(f"{name:8} {value}")
    if check:
        lost = list(data.damaged())
        for _, reason in lost:
            say(reason)
        count = sum(len(samples) for samples, _ in lost)
        typer.echo(f"checked  {len(data) - count} samples are whole, {count} are lost")
        raise typer.Exit(1 if lost else 0)


@data_app.command()
def unpack(
    file: FilePath,
    out: Annotated[Path, typer.Option("--out", "-o", help="An .npz file.")],
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave lost samples out, and name them.")
    ] = False,
) -> None:
    """Write FILE as an .npz file: inputs and labels; of rows that differ also their lengths.

    Example: modelzip data unpack train.mzd -o train.npz
    """
    from modelzip.data import PackedDataset
    from modelzip.data.packed.unpack import unpack as write

    data = PackedDataset(file, random_access=True)
    lost = write(data, out, keep_going=keep_going)
    for reason in lost:
        say(reason)
    typer.echo(str(out))


@data_app.command()
def bench(
    file: FilePath,
    batch_size: Annotated[int, typer.Option(help="Samples that are asked for at once.")] = 128,
) -> None:
    """Show samples a second from FILE in turn, chunk-shuffled, and in random order.

    Example: modelzip data bench train.mzd
    """
    from modelzip.data.packed.speed import ORDERS, speed

    for name in ORDERS:
        found = speed(file, name, batch_size=batch_size)
        typer.echo(f"{name:15} {found.wall:>9.0f} a second, {found.core:>9.0f} of a core's time")


def _arguments(texts: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingError(f"--set takes KEY=VALUE, got {text!r}")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingError(f"--set {text}: the value is no YAML") from error
    return found
