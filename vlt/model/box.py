"""Where the model in the box lies. `vlt train box` makes it; data/box/README.md says what it can do and cannot."""

from __future__ import annotations

from pathlib import Path

from vlt.errors import VltError


def folder() -> Path:
    """In an installed wheel it lies in the package, in a checkout in data/."""
    package = Path(__file__).parents[1]
    for place in (package / "box", package.parent / "data" / "box"):
        if (place / "config.json").is_file():
            return place
    raise VltError(f"the model in the box is not there (looked in {package / 'box'} and {package.parent / 'data' / 'box'})")
