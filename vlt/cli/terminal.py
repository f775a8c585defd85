"""What the commands share: where results and messages go, and what is checked before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vlt.errors import VltError, write_whole

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
if not out.is_terminal:
    out = Console(width=140, emoji=False)  # into a file or a pipe: tables keep their lines

FIGURES = (".png", ".svg", ".pdf")


def say(text: str, style: str) -> None:
    # one line, whatever a file name holds
    err.print(printable(" ".join(text.split())), style=style, markup=False, highlight=False, soft_wrap=True)


def progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def printable(text: str) -> str:
    """Without control characters: an answer cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def note(text: str) -> None:
    if text:
        out.print(f"[bold yellow]note[/bold yellow]    {escape(text)}", highlight=False, soft_wrap=True)


def hand_out(text: str, rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """The table first: it is there also where the file cannot be written."""
    typer.echo(text)
    if json_file is not None:
        write_whole(json_file, json.dumps(rows, indent=1) + "\n")


def check_file(path: Path | None) -> None:
    """Before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise VltError(f"{path}: give a file in a folder that exists")
    if path is not None and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise VltError(f"{path}: cannot be written")


def check_page(path: Path | None) -> None:
    check_file(path)
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise VltError(f"{path}: a page is written as .html")


def check_figure(path: Path | None) -> None:
    check_file(path)
    if path is not None and path.suffix.lower() not in FIGURES:
        raise VltError(f"{path}: figures are written as {', '.join(FIGURES)}")
