"""The one kind of error that vlt raises on purpose: it says what was asked, what was expected, what came, what to do.
And reading and writing small files so that it is raised."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class VltError(ValueError):
    """Something that was asked for cannot be done rightly. The message is one line a person can act on."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names that look most like `name`, as a phrase for an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.4)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(known)}"


def among(name: str, known: Iterable[str]) -> str:
    """All known names, behind those that look most like `name`, if any do."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    first = f"nearest: {', '.join(close)}; " if close else ""
    return f"{first}all: {', '.join(known)}"


def check_type(value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Refuses what is of another kind; most often two arguments are in the wrong order."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise VltError(f"{what}: expected {' or '.join(k.__name__ for k in kinds)}, got {type(value).__name__}")


def check_seed(seed: object) -> None:
    """Of what is drawn from torch's and numpy's numbers alike."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise VltError(f"seed {seed!r}; expected a whole number from 0 to 2**32 - 1")


def texts(value: object, what: str) -> list[str]:
    """One text or several, as a list."""
    found: list[Any] = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(text, str) for text in found):
        raise VltError(f"{what}: expected a text, or a list of texts, got {value!r}")
    return found


def first_line(error: BaseException) -> str:
    """The first line of what another library says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; anything else is a `VltError` that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VltError(f"{path}: cannot be read as JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise VltError(f"{path}: holds a {type(content).__name__}; expected a JSON object")
    return content


def write_whole(path: Path, content: bytes | str) -> None:
    """The whole content or nothing: an interrupted run leaves no half file."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            work.write_bytes(content.encode() if isinstance(content, str) else content)
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise VltError(f"{path}: cannot be written ({error.strerror})") from error
