"""`vlt ...`: the command line. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from vlt.errors import VltError

app = typer.Typer(
    help="The Video-LLaMA toolkit: see into a model that watches and listens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)


def main() -> None:
    """The entry point: what vlt refuses ends in one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except VltError as error:
        err.print(f"vlt: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
