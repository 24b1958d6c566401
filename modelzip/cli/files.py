"""Commands on files: ONNX models and archives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from modelzip.cli.app import app, log_to_stderr
from modelzip.errors import SettingError

ArchivePath = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="An archive or a bundle.")]


@app.command()
def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file.")],
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Another file with the same inputs, to compare with."),
    ] = None,
    batch_size: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Repeat for more. [default: 1, 32]"),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    layers: Annotated[
        bool, typer.Option("--layers", help="Bits, bytes and time of each layer instead.")
    ] = False,
) -> None:
    """Measure size, latency and memory of MODEL.onnx on random inputs.

    Example: modelzip measure runs/digits/model.onnx --against runs/digits/baseline.onnx
    """
    from modelzip.report.inspection import inspect, inspect_layers

    sizes = batch_size or ([1] if layers else [1, 32])
    if layers:
        for size in sizes:
            typer.echo(f"batch {size}")
            typer.echo(inspect_layers(model, against=against, batch_size=size, threads=threads))
    else:
        typer.echo(inspect(model, against=against, batch_sizes=sizes, threads=threads))


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An ONNX model, a checkpoint, or a state_dict; with --lossy, a recipe.",
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="The archive. [default: FILE, ending in .mzip]"),
    ] = None,
    codec: Annotated[str, typer.Option(help="auto, or one for all tensors.")] = "auto",
    lossy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TARGET",
            help="size=0.06x or kl=0.05: round the weights of a recipe's model for it.",
        ),
    ] = None,
) -> None:
    """Store FILE as small as its bytes allow; unpack gives the same bytes back.

    With --lossy, FILE is a recipe, whose model and data are used and no steps: what each layer is
    worth is measured, nothing is trained, and a report on the model that unpacks is printed.

    Example: modelzip pack runs/digits/model.onnx -o digits.mzip
    """
    if lossy is not None:
        _pack_lossy(source, out or source.with_suffix(".mzip"), lossy, codec)
        return
    from modelzip.archive.pack import pack as pack_file

    found = pack_file(source, out or source.with_suffix(".mzip"), codec=codec, progress=True)
    typer.echo(
        f"{found.path}: {found.after / 1000:.1f} KB of {found.before / 1000:.1f} KB, "
        f"{found.ratio:.3f}x"
    )


def _pack_lossy(source: Path, out: Path, target: str, codec: str) -> None:
    name, _, value = target.partition("=")
    try:
        kl = float(value) if name == "kl" else None
    except ValueError:
        name = ""
    if name not in ("size", "kl"):
        raise SettingError(f"--lossy takes size=0.06x or kl=0.05, got {target!r}")
    if source.suffix not in (".yaml", ".yml"):
        raise SettingError(
            f"{source}: --lossy measures what weights are worth, on data; give a recipe (.yaml), "
            "which names a model and its data"
        )
    from modelzip.recipe.loader import load

    recipe = load(source)
    from modelzip.lossy import pack_lossy
    from modelzip.report.render import terminal

    log_to_stderr()
    record = pack_lossy(recipe, out, size=value if kl is None else None, kl=kl, codec=codec)
    typer.echo(terminal(record))
    typer.echo(f"\narchive: {out}")
    raise typer.Exit(0 if record.passed else 1)


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="A .zip, .tar or .tar.gz. [default: RUN_DIR.zip]"),
    ] = None,
    without_onnx: Annotated[
        bool, typer.Option("--without-onnx", help="Leave model.onnx to be made from model.mzip.")
    ] = False,
) -> None:
    """Put recipe, report, archive and ONNX file of a run into one file, to hand the model on.

    Example: modelzip bundle runs/digits -o digits.zip
    """
    from modelzip.archive.bundle import bundle as bundle_files

    out = out or folder.parent / f"{folder.resolve().name}.zip"
    found = bundle_files(folder, out, onnx=not without_onnx, progress=True)
    typer.echo(
        f"{found.path}: {', '.join(found.files)}; {found.after / 1000:.1f} KB of "
        f"{found.before / 1000:.1f} KB"
    )


@app.command()
def unpack(
    archive: ArchivePath,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--out",
            "-o",
            help="The file, or a folder to put it in; of a bundle, the folder. "
            "[default: here; of a bundle, a folder of its name]",
        ),
    ] = None,
) -> None:
    """Write the file that is packed in ARCHIVE, to the byte; or the files of a bundle, checked.

    Example: modelzip unpack digits.mzip -o digits.onnx
    """
    from modelzip.archive.unbundle import is_bundle, own_name
    from modelzip.archive.unpack import unpack as unpack_file

    out = out or Path(own_name(archive) if is_bundle(archive) else ".")
    typer.echo(unpack_file(archive, out, progress=True))


@app.command(name="list")
def list_tensors(archive: ArchivePath) -> None:
    """Show each tensor in ARCHIVE, and how it is stored in how many bits a value; or each file.

    Example: modelzip list digits.mzip
    """
    from modelzip.report.archive import listing

    typer.echo(listing(archive))


@app.command()
def test(archive: ArchivePath) -> None:
    """Decode all of ARCHIVE and compare every checksum.

    Example: modelzip test digits.mzip
    """
    from modelzip.report.archive import checked

    typer.echo(checked(archive))
