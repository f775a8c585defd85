"""Is heat where the cause is?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vlt.errors import VltError

# A patch is of the cause where the object covers so much of it.
COVERED = 0.25


def judge(heat: np.ndarray, cause: np.ndarray, cells: Mapping[str, int] | None = None) -> dict[str, float]:
    """heat: [frame, height, width], or [frame, patch] with the class token's first, which is of no place; or [segment, ...].
    cause: [frame, row, column] of patches, how much of each the object covers; or [segment]. cells: the frames, and pixels
    of height and width, that a method took away as one, by default none. All is judged by patches, or the cells where they
    are larger, and by segments: heat is summed over each. A cell is of the cause where any of its patches is.

    pointing: is the hottest cell of the cause (Zhang et al., arXiv 1608.00507)? Of several equally hot ones, the share
    that are. mass: the share of what is above 0 that lies on the cause; area: the share of the picture that is the
    cause. rank: the chance that a cell of the cause is hotter than another (area under the ROC curve). chance: of
    pointing, by a map that knows nothing. Raises `VltError` where the cause is nowhere, or everywhere, for heat that is no
    number, and for cells that are no whole patches or do not tile the picture.
    """
    grid, own, cause = _on_cells(heat, cause, cells)
    if not own.any() or own.all():
        raise VltError("a cause is somewhere, and not everywhere")
    above = grid.clip(min=0)
    ranks = pd.Series(grid.ravel()).rank().to_numpy().reshape(grid.shape)
    n, m = int(own.sum()), int((~own).sum())
    return {
        "pointing": _points(grid, own),
        "mass": float((above * cause).sum() / above.sum()) if above.any() else float(cause.mean()),
        "area": float(cause.mean()),
        "rank": float((ranks[own].sum() - n * (n + 1) / 2) / (n * m)),
        "chance": float(own.mean()),
    }


def points(heat: np.ndarray, cause: np.ndarray, cells: Mapping[str, int] | None = None) -> float:
    """The pointing of `judge` alone, also to what is nowhere."""
    grid, own, _ = _on_cells(heat, cause, cells)
    return _points(grid, own)


def _points(grid: np.ndarray, own: np.ndarray) -> float:
    top = grid >= grid.max() - 1e-6 * max(float(np.abs(grid).max()), 1e-30)
    return float(own[top].mean())


def _on_cells(
    heat: np.ndarray, cause: np.ndarray, cells: Mapping[str, int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heat summed over the cells that it is judged by, which of them are of the cause, and how much of each is."""
    if not np.isfinite(heat).all():
        raise VltError("this heat has numbers that are not finite (nan or infinity): it points nowhere")
    grid, own = on_grid(heat, cause), cause > (COVERED if cause.ndim > 1 else 0)
    if not cells or cause.ndim == 1:
        return grid, own, cause
    patch = heat.shape[1] // cause.shape[1]
    sides = [cells.get(axis, 1) for axis in ("height", "width")]
    sizes = [cells.get("frame", 1), *(max(1, side // patch) for side in sides)]
    whole = all(side <= patch or side % patch == 0 for side in sides)
    if not whole or any(n % size for n, size in zip(cause.shape, sizes, strict=True)):
        raise VltError(f"cells {dict(cells)} do not tile {' x '.join(map(str, cause.shape))} patches of {patch} pixels")
    return _blocks(grid, sizes).sum(-1), _blocks(own, sizes).max(-1), _blocks(cause, sizes).mean(-1)


def on_grid(heat: np.ndarray, cause: np.ndarray) -> np.ndarray:
    """Heat summed over the cells of the cause's grid: pixels over patches, mel and time over segments. Heat on patches has
    the class token's first."""
    if cause.ndim == 1:
        return heat.reshape(len(cause), -1).sum(1)
    frames, rows, columns = cause.shape
    if heat.shape == (frames, 1 + rows * columns):
        return heat[:, 1:].reshape(cause.shape)
    return heat.reshape(frames, rows, heat.shape[1] // rows, columns, heat.shape[2] // columns).sum((2, 4))


def _blocks(array: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """[frame, row, column] -> [block, block, block, what is in it]."""
    parts = array.reshape([n for size, many in zip(array.shape, sizes, strict=True) for n in (size // many, many)])
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(*parts.shape[::2], -1)
