"""The command line: `modelzip run | check | verify | sensitivity | passes | measure | ...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from modelzip.errors import ModelzipError, SettingError

app = typer.Typer(
    name="modelzip",
    help="Turn a trained PyTorch model into a small, fast ONNX file, and prove it.\n\n"
    "Example: modelzip run recipes/digits.yaml",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  typer reads the annotation at run time, on 3.10 as well
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeat for more."),
]


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error; may stand anywhere.")
    ] = False,
) -> None:
    """Options of every command; `main` takes them out of the arguments."""


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A folder that does not exist yet. [default: runs/ and the recipe's name]"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the report alone.")] = False,
) -> None:
    """Carry out RECIPE and report on the result.

    Exit status: 0 all requirements met, 1 one missed, 2 the recipe or the command is wrong.

    Example: modelzip run recipes/digits.yaml --set steps.0.prune_channels.sparsity=0.5
    """
    from modelzip.recipe.loader import load

    loaded = load(recipe, overrides=overrides or [])
    from modelzip.report.render import terminal
    from modelzip.run import run as carry_out

    first = os.environ.get("RANK", "0") == "0"  # the others of `accelerate launch` stay silent
    if first and not quiet:
        _log_to_stderr()
    folder = out or Path("runs") / recipe.stem
    try:
        record = carry_out(loaded, out=folder, resume=resume, progress=not quiet)
    except KeyboardInterrupt:
        arguments = [f"--set {override}" for override in overrides or []]
        again = " ".join(["modelzip run", str(recipe), *arguments, f"--out {folder} --resume"])
        _say(f"interrupted; continue with: {again}")
        raise typer.Exit(130) from None
    if first:
        typer.echo(terminal(record))
        typer.echo(f"\nreport: {folder / 'report.md'}")
    raise typer.Exit(0 if record.passed else 1)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Validate RECIPE with its model and data, and print what it would do; nothing is run.

    Example: modelzip check recipes/digits.yaml
    """
    from modelzip.recipe.loader import load

    loaded = load(recipe, overrides=overrides or [])
    from modelzip.report.catalogue import plan
    from modelzip.run import rehearse

    typer.echo(plan(recipe.name, loaded.resolved(), rehearse(loaded)))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    samples: Annotated[int, typer.Option(help="Test samples to compare on.")] = 1000,
) -> None:
    """Compare the file of a finished run with its model, layer by layer, and with its report.

    Exit status: 0 the file computes what the model does, 1 it does not or is not the report's,
    2 there is no such run.

    Example: modelzip verify runs/digits
    """
    from modelzip.recipe.verify import verify as check_again
    from modelzip.report.layers import verification

    found = check_again(folder, samples=samples)
    typer.echo(verification(found.layers, found.accuracy, found.promise, found.problems))
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def passes(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[NAME]", help="One pass, in full."),
    ] = None,
) -> None:
    """List the passes there are, or one with its settings, units, defaults and source.

    Example: modelzip passes prune_channels
    """
    from modelzip.report.catalogue import catalogue, describe

    typer.echo(catalogue() if name is None else describe(name))


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
def sensitivity(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe, or the folder of its run.")
    ],
    bits: Annotated[int, typer.Option(help="Of the weights, 2 to 8.")] = 8,
    prune: Annotated[bool, typer.Option("--prune", help="Cut channels instead.")] = False,
    importance: Annotated[
        str, typer.Option(help="Of --prune: which channels go first, as of prune_channels.")
    ] = "l1",
    plot: Annotated[
        Optional[Path],  # noqa: UP045  see Overrides
        typer.Option(metavar="FILE.png|svg", help="Of --prune: draw the curves as well."),
    ] = None,
) -> None:
    """Rank the layers of the float model by what quantizing, or pruning, each alone costs.

    KL is the divergence of the outputs, softened at a temperature of 3, on 256 training samples;
    shares are those of the float file, its time at batch 1. --prune leaves each layer, and what
    hangs together with it, 75, 50 and 25 % of its channels, without any fine-tuning.

    Example: modelzip sensitivity runs/digits --bits 4
    """
    from modelzip.recipe.ranking import channel_ranking, ranking
    from modelzip.report.channels import CHANNELS, channel_rows, plot_channels, plottable
    from modelzip.report.sensitivity import SENSITIVITY, sensitivity_rows
    from modelzip.report.text import table

    if not prune:
        if plot is not None:
            raise SettingError("--plot draws what --prune measures; add --prune")
        typer.echo(table(sensitivity_rows(ranking(recipe, bits=bits)), SENSITIVITY))
        return
    if plot is not None:
        plottable(plot)  # before the measurement, not after
    rows = channel_ranking(recipe, importance=importance)
    typer.echo(table(channel_rows(rows), CHANNELS))
    if plot is not None:
        plot_channels(rows, plot)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs.")],
) -> None:
    """Show runs side by side.

    Example: modelzip compare runs/digits runs/resnet20_int8
    """
    from modelzip.report.record import read
    from modelzip.report.render import comparison

    typer.echo(comparison([(str(folder), read(folder)) for folder in runs]))


def main() -> None:
    """Run the command line; every expected error is one line on stderr, and exit status 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (ModelzipError, OSError) as error:
        if debug:
            raise
        _say(f"error: {_one_line(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _say(f"error: {type(error).__name__}: {_one_line(error)}; --debug shows where")
        sys.exit(2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _log_to_stderr() -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("modelzip")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
