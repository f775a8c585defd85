"""`vlt ...`: the command line. Results go to standard output; progress, warnings and errors to standard error."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from vlt.cli import look, make, terminal
from vlt.cli.explain import explain, truth
from vlt.errors import VltError

app = typer.Typer(
    help="The Video-LLaMA toolkit: see into a model that watches and listens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (look.probe, look.stages, look.sweep, explain, make.convert, make.evaluate, make.hearing, truth):
    app.command()(command)
app.add_typer(make.train_app, name="train")


def main() -> None:
    """The entry point: what vlt refuses ends in one line and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except VltError as error:
        terminal.say(f"vlt: {error}", "red")
        sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    terminal.say(f"note: {message}", "yellow")
