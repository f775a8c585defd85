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
    assert found.loc["looking", "mass"] == 1 and np.isnan(found.loc["looking", "mass low"])  # nor do clips that are alike
    assert "pointing low" in looking and "chance low" not in looking and "error" not in looking


def test_differences_go_below_zero() -> None:
    gains = [-2.0, 0.5, 3.0]
    maps = pd.DataFrame([row(clip, "shape", gain=gain) for clip, gain in enumerate(gains)])
    bounds = ttest_1samp(gains, 0).confidence_interval(0.95)
    found = tables.summary(maps).loc[0, ["gain low", "gain high"]].tolist()
    assert found == pytest.approx([bounds.low, bounds.high]) and found[0] < 0 and found[1] > 1


def test_which_of_the_two_counts_maps_on_one_of_them() -> None:
    maps = pd.DataFrame(
        [row(0, "shape", which=1.0), row(0, "colour", which=0.0), row(1, "shape", which=1.0), row(2, "shape", which=np.nan)]
    )
    looking = tables.summary(maps).set_index("question").loc["looking"]
    assert looking["which"] == pytest.approx((0.5 + 1) / 2) and (looking["which clips"], looking["clips"]) == (2, 3)
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


def test_what_is_true_asked_to_look_and_to_listen() -> None:
    maps = pd.DataFrame(
        [row(0, kind, beats=beats) for kind, beats in (("shape", 1.0), ("colour", 0.0), ("motion", 0.0))]
        + [row(1, "shape", beats=1.0), *(row(clip, "hear", beats=0.0) for clip in range(9))]
    )
    text = tables.markdown(tables.summary(maps))
    head, _, line, chance = ([cell.strip() for cell in each.strip("|").split("|")] for each in text.splitlines()[:4])
    assert head[8:10] == ["true, looking (clips 2)", "true, listening (clips 9)"] and line[8:10] == ["0.67", "0.00"]
    assert chance[8:10] == ["0.05 to 0.08"] * 2 and "Which thing" not in text and "of n questions" in text
    heard = tables.markdown(tables.summary(maps[maps["question"] == "hear"])).splitlines()
    assert "| true, listening (clips 9) |" in heard[0] and "looking (" not in heard[0] and "| 0.00 |" in heard[2]


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
    first, _, _, second, *_ = tables.markdown(table).split("\n\n")
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
    """Each number of its own; random weights and the like are of fewer clips."""
    maps = [
        row(0, "shape", pointing=0.31, distractor=0.32, which=0.33, elsewhere=0.34, heat=87.0, brings=-2.0),
        row(0, "shape", OTHER[MODEL], heat=13.0, brings=8.0),
        row(0, "hear", pointing=0.41, heat=14.0, brings=3.0),
        row(0, "hear", OTHER[MODEL], heat=86.0, brings=7.0),
        row(0, "shape", RANDOM, pointing=0.51, distractor=0.52, which=0.53, heat=84.0, brings=1.0),
        row(0, "shape", OTHER[RANDOM], heat=16.0, brings=1.0),
        row(0, "hear", RANDOM, pointing=0.61, chance=0.125, heat=18.0, brings=1.0),
        row(0, "hear", OTHER[RANDOM], heat=82.0, brings=1.0),
        row(0, "hear", SWAPPED, pointing=0.71, distractor=0.72, chance=0.125),
    ]
    maps += [{**maps[0], "clip": 1}, {**maps[2], "clip": 1}]
    table = tables.summary(pd.DataFrame(maps))
    checks = tables.markdown(table).split("\n\n")[3::2]
    found, chances = {}, {}
    for title, check in zip(("thing", "sound", "branch"), checks, strict=True):
        head, line, *chance = [
            [cell.strip() for cell in text.strip("|").split("|")] for text in check.splitlines() if "---" not in text
        ]
        found[title] = dict(zip(head[1:], line[1:], strict=True))
        chances[title] = dict(zip(head[1:], chance[0][1:], strict=True)) if chance else None

    def of(share: float, clips: int) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(share, *evaluate.wilson(share * clips, clips))

    assert found["thing"] == {
        "thing (clips 2)": of(0.31, 2),
        "other thing (clips 2)": of(0.32, 2),
        "things of other clips (clips 2)": "0.34",
        "which thing (clips 2)": of(0.33, 2),
        "random weights, thing (clips 1)": of(0.51, 1),
        "random weights, other thing (clips 1)": of(0.52, 1),
        "random weights, which thing (clips 1)": of(0.53, 1),
    }
    assert found["sound"] == {
        "which sound (clips 2)": of(0.41, 2),
        "random weights (clips 1)": of(0.61, 1),
        "swapped, new (clips 1)": of(0.71, 1),
        "swapped, old (clips 1)": of(0.72, 1),
    }
    assert found["branch"] == {
        "looking (clips 1)": "0.13",
        "listening (clips 1)": "0.14",
        "random weights, looking (clips 1)": "0.16",
        "random weights, listening (clips 1)": "0.18",
        "taken away, looking (clips 1)": "0.80",
        "taken away, listening (clips 1)": "0.30",
    }
    assert [name for name, text in chances["thing"].items() if text == "0.50"] == [
        "which thing (clips 2)",
        "random weights, which thing (clips 1)",
    ]
    assert list(chances["sound"].values()) == ["0.10", "0.12", "0.12", "0.12"] and chances["branch"] is None
    # the other branch is judged by another cause, and is not drawn
    drawn = figures.truth(table)
    assert [axes.get_title() for axes in drawn.axes] == ["shape\nn 2, 1", "hear\nn 2, 1, 1"]
    assert drawn.get_supxlabel().endswith("(n: of model, random weights, sound swapped)")
