"""One of several processes that train together: `test_recipe` starts them, each with its rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.conftest import stand_in
from vlt.train import datasets, recipe
from vlt.train.branches import Branch
from vlt.train.recipe import Schedule, Source


def main(files: Path, folder: Path) -> None:
    """Trains a little, and notes which examples it asked for, which files it wrote, and what it started from and learnt."""
    asked: list[int] = []
    written: list[str] = []
    torch.set_num_threads(1)
    place, write_whole = datasets.Mixture.place, recipe.write_whole

    def noted_place(self: datasets.Mixture, i: int) -> tuple[int, int, int]:
        asked.append(i)
        return place(self, i)

    def noted_write(path: Path, content: Any) -> None:
        if path.name not in written or path.name == recipe.WEIGHTS:  # problems are written again and again
            written.append(path.name)
        write_whole(path, content)

    datasets.Mixture.place = noted_place  # type: ignore[method-assign]
    recipe.write_whole = noted_write
    model = stand_in()
    Branch(model, "video")
    start = recipe.fingerprint(model)
    schedule = Schedule(steps=4, batch=2, rate=1e-2, min_rate=1e-3, warmup_rate=1e-4, warmup=1)
    sources = [Source(files / "llava.json", files / "pictures")]
    recipe.train("vl-2", model, sources, folder / "work", schedule=schedule, quiet=True, save_every=2, say=lambda _: None)
    end = recipe.fingerprint(model)
    found = {"asked": asked, "written": written, "start": start, "end": end}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
