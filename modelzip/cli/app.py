"""The application that commands join, and what they share."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

app = typer.Typer(
    name="modelzip",
    help="Turn a trained PyTorch model into a small, fast ONNX file, and prove it.\n\n"
    "Example: modelzip run recipes/digits.yaml",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error; may stand anywhere.")
    ] = False,
) -> None:
    """Options of every command; `main` takes them out of the arguments."""


def say(text: str) -> None:
    """Print to stderr."""
    typer.echo(text, err=True)


def log_to_stderr() -> None:
    """Show what modelzip logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("modelzip")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
