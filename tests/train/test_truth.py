"""How maps are judged where the cause is known, worked out on paper; and that the causes are where they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlt.errors import VltError
from vlt.model.video_llama import VideoLlama
from vlt.train import truth, world
from vlt.view import figures

CAUSE = np.zeros((2, 2, 3))
CAUSE[0, 0, 0], CAUSE[0, 0, 1], CAUSE[1, 1, 2] = 1.0, 0.2, 0.5  # a cell that is covered by .2 is not of the cause


def test_judged_on_paper() -> None:
    grid = np.array([[[5.0, 1, 0], [-9, 0, 2]], [[0, 0, 0], [3, 0, 4]]])
    found = truth.judge(grid, CAUSE)
    assert found["pointing"] == 1 and found["chance"] == pytest.approx(2 / 12) and found["area"] == pytest.approx(1.7 / 12)
    assert found["mass"] == pytest.approx((5 * 1 + 1 * 0.2 + 4 * 0.5) / (5 + 1 + 2 + 3 + 4))
    assert found["rank"] == 1  # 5 and 4 are above all others
    grid[0, 1, 2] = 4.5
    assert truth.judge(grid, CAUSE)["rank"] == pytest.approx(19 / 20)
    grid[1, 1, 0] = 5.0  # as hot as the hottest
    assert truth.judge(grid, CAUSE)["pointing"] == 0.5
    assert truth.judge(np.zeros((2, 2, 3)), CAUSE) == pytest.approx(
        {"pointing": 2 / 12, "mass": 1.7 / 12, "area": 1.7 / 12, "rank": 0.5, "chance": 2 / 12}
    )
    with pytest.raises(VltError, match="a cause is somewhere, and not everywhere"):
        truth.judge(grid, np.ones((2, 2, 3)))


def test_judged_over_segments() -> None:
    found = truth.judge(np.array([0.0, -1, 7, 2]), np.array([0.0, 0, 1, 0]))
    assert found["pointing"] == 1 and found["mass"] == pytest.approx(7 / 9) and found["chance"] == 0.25


def test_heat_is_summed_over_the_grid() -> None:
    pixels = np.zeros((2, 4, 6))
    pixels[1, 3, 5], pixels[1, 2, 4], pixels[0, 0, 2] = 1, 2, 4
    grid = truth.on_grid(pixels, CAUSE)
    assert grid.shape == (2, 2, 3) and grid[1, 1, 2] == 3 and grid[0, 0, 1] == 4 and grid.sum() == 7
    patches = np.arange(14.0).reshape(2, 7)  # a class token before six patches
    assert truth.on_grid(patches, CAUSE)[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert truth.on_grid(np.ones((3, 5, 7)), np.array([0.0, 1, 0])).tolist() == [35, 35, 35]


@pytest.fixture(scope="module")
def known(boxed: VideoLlama, tmp_path_factory: pytest.TempPathFactory) -> list[truth.Case]:
    folder = tmp_path_factory.mktemp("clips")
    scenes = list(world.scenes(1000, 2, n_things=2, n_sounds=1))
    for i, made in enumerate(scenes):
        world.write(made, folder / f"{i}.mp4", silence=True)
    return list(truth.cases(boxed, scenes, folder))


def test_causes_are_of_what_was_asked(known: list[truth.Case]) -> None:
    assert {"shape", "colour", "motion", "hear", "source"} >= {case.kind for case in known}
    assert {"model", "random weights", "other branch"} <= {case.control for case in known}
    for case in known:
        assert case.word in [token.strip() for token in case.run.answer.tokens]
        assert case.cause.shape == ((8, 8, 8) if case.branch == "video" else (8,))
        if case.control == "model" and case.kind in ("shape", "colour"):
            pixels = case.run["frames"].values.reshape(8, 3, 8, 8, 8, 8).mean((3, 5)).transpose(0, 2, 3, 1)
            inside, outside = pixels[case.cause > 0.9], pixels[case.cause == 0]
            assert len(inside) > 3  # an object covers some patches in every frame, and looks other than what is around it
            assert np.abs(inside.mean(0) - outside.mean(0)).max() > 0.2
            assert inside.std(0).mean() < 0.5 < 2  # of one colour
        if case.control == "model" and case.branch == "audio":
            loud = case.run["spectrograms"].values[:, 0].mean((1, 2))
            assert int(loud.argmax()) == int(case.cause.argmax()) and case.cause.sum() == 1
    swapped = [case for case in known if case.control == "sound swapped"]
    for case in swapped:
        loud = case.run["spectrograms"].values[:, 0].mean((1, 2))
        assert case.cause[int(loud.argmax())] == 0  # nothing is to be found where the sound was before


def test_the_best_way_and_chance(boxed: VideoLlama) -> None:
    ways = ["integrated gradients, features, rather", "attention"]
    table = truth.compare(boxed, 2, seed=2000, ways=ways, controls=2, quiet=True)
    rows = table.set_index(["explained", "way", "question"])
    best = rows.loc[("model", ways[0])]
    assert best["rank"].mean() > 0.7 and best["pointing"].mean() > 0.5
    assert best.loc["hear", "pointing"] == best.loc["source", "pointing"] == 1
    text = truth.markdown(table)
    assert text.splitlines()[0].startswith("| way | shape (n ") and "*chance*" in text
    figure = figures.truth(table)
    assert "Best ways: shape: integrated gradients, features, rather" in figure.alt
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ways
    with pytest.raises(VltError, match="truth draws a table with columns question"):
        figures.truth(pd.DataFrame({"a": [1]}))


def test_seeds_of_training_are_refused(boxed: VideoLlama, tmp_path: Path) -> None:
    with pytest.raises(VltError, match="seed"):
        truth.compare(boxed, 2, seed=10)
