"""The command line: `modelzip run | check | verify | sensitivity | passes | pack | ...`."""

from __future__ import annotations

import sys

from modelzip.cli import data, files, recipes  # noqa: F401  their commands join the application
from modelzip.cli.app import app, say
from modelzip.errors import ModelzipError


def main() -> None:
    """Run the command line; every expected error is one line on stderr, and exit status 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (ModelzipError, OSError) as error:
        if debug:
            raise
        say(f"error: {_one_line(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        say(f"error: {type(error).__name__}: {_one_line(error)}; --debug shows where")
        sys.exit(2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
