"""Files that the browser sends, piece by piece."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path, PurePath

from vlt.errors import VltError

LARGEST = 2**29  # bytes of a file (front.js knows it too)


class Uploads:
    """One file at a time, in a folder of ours and under names of ours. number: of the one under way, None if none is."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.share = 0.0  # of it that is there
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def take(self, piece: bytes, number: int, name: str, at: int, total: int) -> Path | None:
        """A piece, from byte `at` of `total`. A new number takes the place of the one under way; of one that was cancelled
        nothing is taken. Returns the path of the whole file once it is there. Where it raises `VltError`, nothing of the
        file is left."""
        if at == 0:
            self.cancel()
            self.number = number
        elif number != self.number:
            return None
        try:
            return self._take(piece, name, at, total)
        except (VltError, TypeError):
            self.cancel()
            raise
        except OSError as e:
            self.cancel()
            raise VltError(f"{name}: cannot be kept ({e.strerror})") from e

    def _take(self, piece: bytes, name: str, at: int, total: int) -> Path | None:
        if total > LARGEST:
            raise VltError(f"{name}: {total / 2**20:,.0f} MiB; a file from the browser has {LARGEST / 2**20:,.0f} at most")
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="vlt")
        there = self._part.stat().st_size if at else 0
        if at != there or at + len(piece) > total:
            raise VltError(f"{name}: pieces came in another order; try again")
        with self._part.open("ab" if at else "wb") as file:
            file.write(piece)
        self.share = (at + len(piece)) / max(total, 1)
        if at + len(piece) < total:
            return None
        self.number = None
        suffix = "".join(c for c in PurePath(name).suffix.lower() if c.isalnum())[:8]
        return self._part.rename(self._part.with_name(f"{time.time_ns()}.{suffix}"))  # the clip before stays readable

    @property
    def _part(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "part"

    def cancel(self) -> None:
        self.number = None
        if self._folder is not None:
            self._part.unlink(missing_ok=True)

    def keep(self, shown: Path) -> None:
        """Deletes the whole files that are not shown."""
        if self._folder is not None:
            for path in {*Path(self._folder.name).iterdir()} - {shown, self._part}:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()
            self._folder = None
