"""Commands on recipes and their runs, and the passes that there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from modelzip.cli.app import app, log_to_stderr, say
from modelzip.errors import SettingError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  typer reads the annotation at run time, on 3.10 as well
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeat for more."),
]


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
    from modelzip.recipe.generation import GenerationRecipe
    from modelzip.recipe.loader import load

    loaded = load(recipe, overrides=overrides or [])
    from modelzip.generate import generate
    from modelzip.report import generation, render
    from modelzip.run import run as carry_out

    first = os.environ.get("RANK", "0") == "0"  # the others of `accelerate launch` stay silent
    if first and not quiet:
        log_to_stderr()
    folder = out or Path("runs") / recipe.stem
    try:
        if isinstance(loaded, GenerationRecipe):
            made = generate(loaded, out=folder, resume=resume, progress=not quiet)
            passed, text = made.passed, generation.terminal(made)
        else:
            record = carry_out(loaded, out=folder, resume=resume, progress=not quiet)
            passed, text = record.passed, render.terminal(record)
    except KeyboardInterrupt:
        arguments = [f"--set {override}" for override in overrides or []]
        again = " ".join(["modelzip run", str(recipe), *arguments, f"--out {folder} --resume"])
        say(f"interrupted; continue with: {again}")
        raise typer.Exit(130) from None
    if first:
        typer.echo(text)
        typer.echo(f"\nreport: {folder / 'report.md'}")
    raise typer.Exit(0 if passed else 1)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Validate RECIPE with its model and data, and print what it would do; nothing is run.

    Example: modelzip check recipes/digits.yaml
    """
    from modelzip.recipe.generation import GenerationRecipe
    from modelzip.recipe.loader import load

    loaded = load(recipe, overrides=overrides or [])
    from modelzip import generate, run
    from modelzip.report.catalogue import plan

    if isinstance(loaded, GenerationRecipe):
        found = generate.rehearse(loaded)
    else:
        found = run.rehearse(loaded)
    typer.echo(plan(recipe.name, loaded.resolved(), found))


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
