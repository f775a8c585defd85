"""How maps are judged where the cause is known, worked out on paper; and that the causes are where they are said to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.inputs.video import PIXEL_MEAN, PIXEL_STD
from vlt.model.video_llama import VideoLlama
from vlt.train import pointing, sights, truth, world
from vlt.view import figures

CAUSE = np.zeros((2, 2, 3))
CAUSE[0, 0, 0], CAUSE[0, 0, 1], CAUSE[1, 1, 2] = 1.0, 0.2, 0.5  # a cell that is covered by .2 is not of the cause


def test_judged_on_paper() -> None:
    grid = np.array([[[5.0, 1, 0], [-9, 0, 2]], [[0, 0, 0], [3, 0, 4]]])
    found = pointing.judge(grid, CAUSE)
    assert found["pointing"] == 1 and found["chance"] == pytest.approx(2 / 12) and found["area"] == pytest.approx(1.7 / 12)
    assert found["mass"] == pytest.approx((5 * 1 + 1 * 0.2 + 4 * 0.5) / (5 + 1 + 2 + 3 + 4))
    assert found["rank"] == 1  # 5 and 4 are above all others
    grid[0, 1, 2] = 4.5
    assert pointing.judge(grid, CAUSE)["rank"] == pytest.approx(19 / 20)
    grid[1, 1, 0] = 5.0  # as hot as the hottest
    assert pointing.judge(grid, CAUSE)["pointing"] == 0.5
    assert pointing.judge(np.zeros((2, 2, 3)), CAUSE) == pytest.approx(
        {"pointing": 2 / 12, "mass": 1.7 / 12, "area": 1.7 / 12, "rank": 0.5, "chance": 2 / 12}
    )
    with pytest.raises(VltError, match="a cause is somewhere, and not everywhere"):
        pointing.judge(grid, np.ones((2, 2, 3)))


def test_judged_over_segments() -> None:
    found = pointing.judge(np.array([0.0, -1, 7, 2]), np.array([0.0, 0, 1, 0]))
    assert found["pointing"] == 1 and found["mass"] == pytest.approx(7 / 9) and found["chance"] == 0.25


def test_cells_that_go_together_are_judged_as_one() -> None:
    """A thing that moves from the left half of the picture to the right: [2 frames, 2 x 4 patches of 2 x 2 pixels]."""
    cause = np.zeros((2, 2, 4))
    cause[0, 0, 0], cause[1, 0, 1], cause[1, 0, 2] = 1, 1, 0.2
    heat = np.zeros((2, 4, 8))
    heat[:, :2, :2] = 1  # a tube of one patch, hot in both frames, of which the thing is there in one
    assert pointing.judge(heat, cause)["pointing"] == 0.5 and pointing.judge(heat, cause)["chance"] == 2 / 16
    for cells in ({"frame": 3}, {"height": 6, "width": 4}, {"height": 1000}, {"height": 3, "width": 3}):
        with pytest.raises(VltError, match="do not tile"):
            pointing.judge(heat, cause, cells)
    with pytest.raises(VltError, match="not finite"):
        pointing.judge(heat * np.nan, cause)
    tubes = pointing.judge(heat, cause, {"frame": 2, "height": 2, "width": 2})
    assert tubes["pointing"] == 1 and tubes["chance"] == 2 / 8 and tubes["area"] == pytest.approx(2.2 / 16)
    assert tubes["mass"] == 0.5  # it covers half of what is hot, in frames
    assert tubes["rank"] == pytest.approx((6 + 3) / 12)  # of the two tubes of the cause, one is above six, one like them
    squares = pointing.judge(heat, cause, {"height": 4, "width": 4})  # 2 x 2 patches, each frame apart
    assert squares["pointing"] == 1 and squares["chance"] == 2 / 4
    assert pointing.judge(heat[:, :, ::-1], cause, {"height": 4, "width": 4})["pointing"] == 0
    assert pointing.judge(heat, cause, {"height": 1}) == pointing.judge(heat, cause)  # finer than patches: by patches


def test_heat_is_summed_over_the_grid() -> None:
    pixels = np.zeros((2, 4, 6))
    pixels[1, 3, 5], pixels[1, 2, 4], pixels[0, 0, 2] = 1, 2, 4
    grid = pointing.on_grid(pixels, CAUSE)
    assert grid.shape == (2, 2, 3) and grid[1, 1, 2] == 3 and grid[0, 0, 1] == 4 and grid.sum() == 7
    patches = np.arange(14.0).reshape(2, 7)  # a class token before six patches
    assert pointing.on_grid(patches, CAUSE)[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert pointing.on_grid(np.ones((3, 5, 7)), np.array([0.0, 1, 0])).tolist() == [35, 35, 35]


@pytest.fixture(scope="module")
def known(boxed: VideoLlama, tmp_path_factory: pytest.TempPathFactory) -> list[truth.Case]:
    folder = tmp_path_factory.mktemp("clips")
    scenes = list(world.scenes(1000, 2, n_things=2, n_sounds=1))
    for i, made in enumerate(scenes):
        world.write(made, folder / f"{i}.mp4", silence=True)
    return [case for i in range(2) for case in truth.cases(boxed, scenes, folder, i)]


def _nearest(pixels: np.ndarray) -> str:
    """Of the world's colours, to normalised pixels [pixel, channel]."""
    mean = 255 * (pixels.mean(0) * PIXEL_STD + PIXEL_MEAN)
    return min(sights.RGB, key=lambda name: float(np.abs(mean - sights.RGB[name]).sum()))


def test_causes_are_of_what_was_asked(known: list[truth.Case]) -> None:
    assert {"shape", "colour", "motion", "hear", "source"} >= {case.kind for case in known}
    assert {"model", "random weights", "other branch"} <= {case.control for case in known}
    assert (
        {case.number for case in known if case.control != "model"} == {0} < {case.number for case in known}
    )  # of every second
    for case in known:
        assert case.word in [token.strip() for token in case.run.answer.tokens]
        assert case.cause.shape == ((8, 8, 8) if case.branch == "video" else (8,))
        if case.control == "model" and case.kind in ("shape", "colour"):
            pixels = case.run["frames"].values.reshape(8, 3, 8, 8, 8, 8).mean((3, 5)).transpose(0, 2, 3, 1)
            inside, outside = pixels[case.cause > 0.9], pixels[case.cause == 0]
            assert len(inside) > 3  # an object covers some patches in every frame, and looks other than what is around it
            assert np.abs(inside.mean(0) - outside.mean(0)).max() > 0.2
            assert inside.std(0).mean() < 0.5  # of one colour
            assert case.distractor is not None and case.distractor.shape == case.cause.shape
            other = pixels[case.distractor > 0.9]
            assert len(other) > 3 and other.std(0).mean() < 0.5
            if case.kind == "colour":
                assert (_nearest(inside), _nearest(other)) == (case.word, case.rather)
        assert (case.distractor is None) == (case.branch == "audio")
        own = next(c for c in known if (c.number, c.kind, c.control) == (case.number, case.kind, "model"))
        assert (case.run.model is own.run.model) == (case.control != "random weights")
        if case.control == "model" and case.branch == "audio":
            loud = case.run["spectrograms"].values[:, 0].mean((1, 2))
            assert int(loud.argmax()) == int(case.cause.argmax()) and case.cause.sum() == 1
    swapped = [case for case in known if case.control == "sound swapped"]
    assert swapped
    for case in swapped:
        loud = case.run["spectrograms"].values[:, 0].mean((1, 2))
        assert case.cause[int(loud.argmax())] == 0  # nothing is to be found where the sound was before


def test_what_is_true_of_both_things_is_not_asked(boxed: VideoLlama, tmp_path: Path) -> None:
    """Two things that move alike: no map of the motion could tell which was meant, and no word is said rather than itself."""
    alike = next(s for s in world.scenes(1000, 40, n_things=2, n_sounds=1) if s.things[0].motion == s.things[1].motion)
    world.write(alike, tmp_path / "0.mp4", silence=True)
    found = [case for case in truth.cases(boxed, [alike], tmp_path, 0) if case.control == "model"]
    assert found and all(case.kind != "motion" and case.word != case.rather for case in found)


def test_where_the_verb_has_decided_about_a_motion() -> None:
    """One of two things that move differently stays still: the README says in how many of the benchmark's clips."""
    motions = [{thing.motion for thing in made.things} for made in world.scenes(1000, 28, n_things=2, n_sounds=1)]
    assert (sum(len(two) == 2 for two in motions), sum(len(two) == 2 and "still" in two for two in motions)) == (21, 9)


def test_heat_on_the_other_branch_is_without_its_sign(known: list[truth.Case]) -> None:
    """What speaks against the word is heat too: it must not cancel what speaks for it."""
    way, asked = "integrated gradients, features", dict[Any, float]()
    case = next(c for c in known if c.kind == "colour" and c.control == "model")
    other = next(c for c in known if c.kind == "colour" and c.control == "other branch" and c.run is case.run)
    (row,) = truth._judged(case, way, 0, asked)
    (beside,) = truth._judged(other, way, 0, asked)
    seen, heard = (
        np.abs(
            attribute(case.run, at, "integrated_gradients", case.word, progress=False).heat.values.reshape(8, -1).sum(1)
        ).sum()
        for at in ("patches", "audio_features")
    )
    assert beside["share"] == pytest.approx(heard / (heard + seen), rel=0.02) and "share" not in row
    assert 0 <= row["error"] < 0.1 and "beats" not in row
    truth._judged(case, "saliency", 0, asked)
    assert "share" not in truth._judged(other, "saliency", 0, asked)[0]  # a slope per pixel, and one per mel cell
    (later,) = truth._judged(other, way, 0, {})
    assert "share" not in later  # nothing is compared with what was found in another run


def test_the_other_thing_is_judged_as_the_one_that_was_asked_about(known: list[truth.Case]) -> None:
    way = "attention"  # it sees two things, and not which is meant
    case = next(c for c in known if c.kind == "colour" and c.control == "model")
    (row,) = truth._judged(case, way, 0, {})
    turned = dataclasses.replace(case, cause=case.distractor, distractor=case.cause)
    (other,) = truth._judged(turned, way, 0, {})
    assert {row["pointing"], row["distractor"]} == {0, 1}
    assert (other["pointing"], other["distractor"]) == (row["distractor"], row["pointing"])
    (heard,) = truth._judged(next(c for c in known if c.branch == "audio"), way, 0, {})
    assert "distractor" not in heard


def test_shares_are_of_maps_and_not_of_kinds() -> None:
    rows = pd.DataFrame(
        [{"question": "shape", "explained": "model", "way": "w", "beats": 1.0}]
        + [{"question": "hear", "explained": "model", "way": "w", "beats": 0.0}] * 9
    ).assign(pointing=1.0, mass=1.0, area=0.1, rank=1.0, chance=0.1, forwards=1, backwards=0, seconds=0.1)
    text = truth.markdown(truth._table(rows))
    assert "| true (n 10) |" in text and "| 0.10 |" in text


def test_chance_stands_under_the_ways_it_is_of() -> None:
    ways = [("a", 0.1), ("b", 0.1), ("tubes", 0.3), ("c", 0.1)]
    rows = pd.DataFrame(
        [
            {"question": kind, "explained": sort, "way": way}
            | {"chance": (chance if kind == "shape" else 0.125) * (1 if sort == "model" else 2)}
            for way, chance in ways
            for kind in ("shape", "hear")
            for sort in ("model", "random weights")
            if (way, kind) != ("tubes", "hear")
        ]
    ).assign(pointing=1.0, mass=1.0, area=0.1, rank=1.0, forwards=1, backwards=2, seconds=0.1)
    table = truth._table(rows)
    assert truth.markdown(table).splitlines()[2].split("|")[4].strip() == "-"  # no map was judged by another thing
    rows["distractor"] = np.where(rows["question"] == "shape", np.where(rows["explained"] == "model", 0.4, 0.6), np.nan)
    of_controls = np.where(rows["question"] == "shape", 0.25, 0.75)
    rows["share"] = np.where(rows["explained"] == "model", np.nan, of_controls)
    table = truth._table(rows)
    first, second = truth.markdown(table).split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()[2:]]
    assert [line[0] for line in cells] == ["a", "b", "*chance*", "tubes", "*chance*", "c", "*chance*"]
    assert cells[2][1:3] == ["0.10", "0.12"] and cells[4][1:3] == ["0.30", "-"] and cells[3][1:3] == ["1.00", "-"]
    assert cells[0][3:] == ["0.40", "1.00", "1", "2", "0.1"]
    assert first.splitlines()[0].split("|")[4].strip() == "other thing"
    assert second.splitlines()[2] == "| a | 1.00 / 0.60 | 1.00 | 0.25 | 0.75 |"
    assert "random weights, looking: thing / other thing (n 1)" in second and "random weights, listening (n 1)" in second
    chances = [line.split("|")[2].strip() for line in second.splitlines() if "chance" in line]
    assert chances == ["0.20", "0.60", "0.20"]
    drawn = figures.truth(table)
    for axes, of_model in zip(drawn.axes, ([0.1, 0.1, 0.3, 0.1], [0.125] * 3), strict=True):
        own, control = [line for line in axes.lines if line.get_marker() == "|" and line.get_linestyle() == "None"]
        assert own.get_xdata().tolist() == pytest.approx(of_model)
        assert control.get_xdata().tolist() == pytest.approx([2 * chance for chance in of_model])  # each beside its own sign
        assert (control.get_ydata() - own.get_ydata()).tolist() == pytest.approx([0.18] * len(of_model))
    assert [line.get_label() for line in drawn.axes[0].lines].count("chance") == 1
    crosses = [[line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "x"] for axes in drawn.axes]
    assert crosses == [[[0.4] * 4], []]


def test_in_two_processes_it_is_the_same(boxed: VideoLlama) -> None:
    one, two = (
        truth.compare(boxed, 2, seed=2000, ways=["gradient x input"], controls=0, processes=n, quiet=True) for n in (1, 2)
    )
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds"))


def test_the_best_way_and_chance(boxed: VideoLlama) -> None:
    ways = ["integrated gradients, features, rather", "grad-cam"]
    table = truth.compare(boxed, 2, seed=2000, ways=ways, controls=19, quiet=True)
    rows = table.set_index(["explained", "way", "question"]).sort_index()
    best = rows.loc[("model", ways[0])]
    assert best["rank"].mean() > 0.7 and best["pointing"].mean() > 0.5
    assert best.loc["hear", "pointing"] == best.loc["source", "pointing"] == 1
    tested = table[table["beats"].notna()]
    assert set(tested["explained"]) == {"model"} and (tested["tested"] == 1).all()
    assert set(tested["beats"]) <= {0, 1} and tested.loc[tested["way"] == ways[0], "beats"].mean() > 0.5
    assert np.allclose(tested["gain"], tested["insertion"] - tested["deletion"], atol=1e-6)
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
