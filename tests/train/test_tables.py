"""Means over clips and their intervals, worked out on paper; and that every number stands where its heading says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from vlt.train import evaluate, tables
from vlt.train.tables import MODEL, OTHER, RANDOM, SWAPPED
from vlt.view import figures

COST = {"forwards": 1, "backwards": 2, "seconds": 0.1}
JUDGED = {"pointing": 1.0, "mass": 1.0, "area": 0.1, "rank": 1.0, "chance": 0.1}


def row(clip: int, question: str, explained: str = MODEL, way: str = "w", **found: Any) -> dict[str, Any]:
    return {"clip": clip, "question": question, "explained": explained, "way": way, **COST, **JUDGED, **found}


def test_a_clip_counts_once() -> None:
    """However many questions were asked about it: they are no draws of their own."""
    maps = pd.DataFrame(
        [row(0, kind, pointing=1.0, rank=0.9, distractor=0.0) for kind in tables.LOOK]
        + [row(1, "shape", pointing=0.0, rank=0.6, distractor=1.0), row(2, "shape", pointing=0.5, rank=0.8, distractor=0.0)]
    )
    found = tables.summary(maps).set_index("question")
    looking = found.loc["looking"]
    assert (looking["n"], looking["clips"]) == (5, 3) and found.loc["shape", "n"] == 3 and "hear" not in found.index
    assert looking["pointing"] == pytest.approx((1 + 0 + 0.5) / 3) and looking["distractor"] == pytest.approx(1 / 3)
    assert (looking["pointing low"], looking["pointing high"]) == pytest.approx(evaluate.wilson(1.5, 3))
    bounds = ttest_1samp([0.9, 0.6, 0.8], 0).confidence_interval(0.95)
    assert looking["rank"] == pytest.approx(2.3 / 3)
    assert (looking["rank low"], looking["rank high"]) == pytest.approx((bounds.low, min(bounds.high, 1)))
    assert bounds.high > 1  # what is a share goes no further than 1
    assert np.isnan(found.loc["colour", "rank low"]) and found.loc["colour", "rank"] == 0.9  # one clip tells no spread
    assert "pointing low" in looking and "chance low" not in looking and "error" not in looking


def test_which_of_the_two_counts_maps_on_one_of_them() -> None:
    maps = pd.DataFrame(
        [row(0, "shape", which=1.0), row(0, "colour", which=0.0), row(1, "shape", which=1.0), row(2, "shape", which=np.nan)]
    )
    looking = tables.summary(maps).set_index("question").loc["looking"]
    assert looking["which"] == pytest.approx((0.5 + 1) / 2) and looking["which n"] == 3 and looking["n"] == 4
    assert (looking["which low"], looking["which high"]) == pytest.approx(evaluate.wilson(1.5, 2))


def test_what_share_of_the_heat_is_on_sound() -> None:
    maps = pd.DataFrame(
        [
            row(0, "shape", heat=3.0, brings=-1.0),
            row(0, "shape", OTHER[MODEL], heat=1.0, brings=1.0),
            row(0, "hear", heat=3.0, brings=9.0),
            row(0, "hear", OTHER[MODEL], heat=1.0, brings=-1.0, pointing=np.nan),
            row(0, "shape", RANDOM, heat=1.0, brings=1.0),
            row(0, "shape", OTHER[RANDOM], heat=1.0, brings=3.0),
            row(1, "shape", heat=1.0, brings=1.0),  # of a clip without checks
            row(2, "shape", heat=0.0, brings=0.0),
            row(2, "shape", OTHER[MODEL], heat=0.0, brings=0.0),
        ]
    )
    found = tables.summary(maps).set_index(["explained", "question"])
    shares = {
        key: found.loc[key, ["sound", "brought"]].tolist() for key in [(MODEL, "shape"), (MODEL, "hear"), (RANDOM, "shape")]
    }
    assert shares == {(MODEL, "shape"): [0.25, 0.5], (MODEL, "hear"): [0.75, 0.9], (RANDOM, "shape"): [0.5, 0.75]}
    assert found.loc[(OTHER[MODEL], "shape"), "sound"] != found.loc[(OTHER[MODEL], "shape"), "sound"]  # nan: told once


def test_what_is_true_is_of_maps_and_not_of_kinds() -> None:
    maps = pd.DataFrame([row(0, "shape", beats=1.0), *(row(clip, "hear", beats=0.0) for clip in range(9))])
    text = tables.markdown(tables.summary(maps))
    assert "| true (n 10) |" in text and text.splitlines()[2].split("|")[7].strip() == "0.10"
    assert "0.05 to 0.08" in text.splitlines()[3] and "Checks" not in text


def test_median_of_errors() -> None:
    maps = pd.DataFrame([row(clip, "shape", error=error) for clip, error in enumerate((0.1, 0.2, 9.0))])
    assert tables.summary(maps)["error"].tolist() == [0.2, 0.2]


def test_chance_stands_under_the_ways_it_is_of() -> None:
    ways = [("a", 0.1), ("b", 0.1), ("tubes", 0.3), ("c", 0.1)]
    maps = pd.DataFrame(
        [
            row(0, kind, sort, way, chance=(chance if kind == "shape" else 0.125) * (1 if sort == MODEL else 2))
            | ({"distractor": 0.4 if sort == MODEL else 0.6} if kind == "shape" else {})
            for way, chance in ways
            for kind in ("shape", "hear")
            for sort in (MODEL, RANDOM)
            if (way, kind) != ("tubes", "hear")
        ]
    )
    table = tables.summary(maps)
    first, _, second = tables.markdown(table).split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()[2:]]
    assert [line[0] for line in cells] == ["a", "b", "*chance*", "tubes", "*chance*", "c", "*chance*"]
    assert cells[2][1:3] == ["0.10", "0.12"] and cells[4][1:3] == ["0.30", "-"] and cells[3][1:3] == ["1.00", "-"]
    assert cells[0][3:] == ["0.40", "1.00", "1.00", "1", "2", "0.1"]
    assert first.splitlines()[0].split("|")[4].strip() == "other thing"
    assert [line.split("|")[1].strip() for line in second.splitlines()[2:]] == ["a", "b", "tubes", "c", "*chance*"]
    drawn = figures.truth(table)
    for axes, of_model in zip(drawn.axes, ([0.1, 0.1, 0.3, 0.1], [0.125] * 3), strict=True):
        own, control = [line for line in axes.lines if line.get_marker() == "|" and line.get_linestyle() == "None"]
        assert own.get_xdata().tolist() == pytest.approx(of_model)
        assert control.get_xdata().tolist() == pytest.approx([2 * chance for chance in of_model])  # each beside its own sign
        assert (control.get_ydata() - own.get_ydata()).tolist() == pytest.approx([0.18] * len(of_model))
    assert [line.get_label() for line in drawn.axes[0].lines].count("chance") == 1
    crosses = [[line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "x"] for axes in drawn.axes]
    assert crosses == [[[0.4] * 4], []]


def test_every_check_stands_under_its_heading() -> None:
    """Each number of its own."""
    maps = pd.DataFrame(
        [
            row(0, "shape", which=0.11, elsewhere=0.12, heat=87.0, brings=1.0),
            row(0, "shape", OTHER[MODEL], heat=13.0, brings=1.0),
            row(0, "hear", heat=14.0, brings=1.0),
            row(0, "hear", OTHER[MODEL], heat=86.0, brings=1.0),
            row(0, "shape", RANDOM, which=0.15, heat=84.0, brings=1.0),
            row(0, "shape", OTHER[RANDOM], heat=16.0, brings=1.0),
            row(0, "hear", RANDOM, pointing=0.17, heat=18.0, brings=1.0),
            row(0, "hear", OTHER[RANDOM], heat=82.0, brings=1.0),
            row(0, "hear", SWAPPED, pointing=0.19, distractor=0.21),
        ]
    )
    head, _, line, chance = tables.markdown(tables.summary(maps)).split("\n\n")[2].splitlines()
    found = dict(zip(*([cell.strip() for cell in text.strip("|").split("|")] for text in (head, line)), strict=True))
    low, high = evaluate.wilson(0.11, 1)
    assert found == {
        "way": "w",
        "which thing": f"0.11 ({low:.2f}-{high:.2f})",
        "random weights, which thing": "0.15 ({:.2f}-{:.2f})".format(*evaluate.wilson(0.15, 1)),
        "things of other clips": "0.12",
        "sound swapped, new": "0.19",
        "old": "0.21",
        "random weights, sound": "0.17",
        "heat on sound, looking": "0.13",
        "listening": "0.14",
        "random weights, looking": "0.16",
        "random weights, listening": "0.18",
    }
    assert chance.split("|")[1:4] == [" *chance* ", " 0.50 ", " 0.50 "] and "n 1, 1, 1" in figures_titles(maps)


def figures_titles(maps: pd.DataFrame) -> str:
    """How many maps of each sort: the other branch is judged by another cause, and is not drawn."""
    return " ".join(axes.get_title() for axes in figures.truth(tables.summary(maps)).axes)
