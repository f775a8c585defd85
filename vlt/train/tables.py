"""From maps whose cause is known to tables: how often each way points at it, with 95 % intervals in which a clip counts once,
however many questions were asked about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from vlt.explain.faithfulness import AT_MOST, LEVEL
from vlt.train import evaluate

LOOK, LISTEN = ("shape", "colour", "motion"), ("hear", "source")
POOLED = {"looking": LOOK, "listening": LISTEN}
# What is explained, and what must not find the cause, or must find another.
MODEL, RANDOM, SWAPPED = "model", "random weights", "sound swapped"
OTHER = {MODEL: "other branch", RANDOM: "other branch, random weights"}

_SHARES = ("pointing", "distractor", "which", "beats")
_MEANS = ("mass", "rank", "sound", "brought", "deletion", "insertion", "gain")
_PLAIN = ("area", "chance", "elsewhere", "forwards", "backwards", "seconds")
_UNIT = ("mass", "rank", "sound", "brought")  # of 0 to 1


def summary(maps: pd.DataFrame) -> pd.DataFrame:
    """Of `truth.maps`: a row for every kind of question, and for all "looking" and all "listening" together; what is
    explained; and way. n maps of so many clips; of every measure the mean over clips (of a clip's maps: their mean), and
    "x low" and "x high", its 95 % interval, for which each clip is one draw: Wilson's of pointing, distractor, which and
    beats, else Student's.

    pointing, mass, area, rank, chance: see `pointing.judge`. distractor: how often the hottest place is of the thing that
    was not asked about, and of a swapped sound where it was before. which: of maps that are on exactly one of the two, how
    many are on the right one (which n: how many such maps); by chance one half. elsewhere: how often the hottest place is
    of the causes of other clips: chance for a way that loves some places, such as the middle. sound: of the heat on both
    branches, each place without its sign, the share on sound, of ways whose heat on both can be compared; brought: the
    same of what taking a whole branch away costs. beats: how many of the tested maps are true by `vlt.faithfulness`; each way
    is tested by cells of its own, so ways are not compared by it. deletion, insertion, gain: less the mean of random maps'.
    error: the median. forwards, backwards, seconds: of one map.
    """
    maps, out = _with_shares(maps), []
    for name, kinds in ({kind: (kind,) for kind in (*LOOK, *LISTEN)} | POOLED).items():
        asked = maps[maps["question"].isin(kinds)]
        for (explained, way), some in asked.groupby(["explained", "way"], sort=False):
            row = {"question": name, "explained": explained, "way": way, "n": len(some), "clips": some["clip"].nunique()}
            out.append(row | _measured(some))
    return pd.DataFrame(out)


def _measured(maps: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {}
    for measure in (*_SHARES, *_MEANS, *_PLAIN):
        if measure not in maps or maps[measure].isna().all():
            continue
        values = maps.groupby("clip")[measure].mean().dropna()
        row[measure] = middle = float(values.mean())
        if measure in _SHARES:
            low, high = evaluate.wilson(middle * len(values), len(values))
        elif measure in _MEANS:
            sure = len(values) > 1
            half = float(student.ppf(0.975, len(values) - 1) * values.sem()) if sure else math.nan
            low, high = middle - half, middle + half
            if measure in _UNIT and sure:
                low, high = max(low, 0.0), min(high, 1.0)
        else:
            continue
        row |= {f"{measure} low": low, f"{measure} high": high}
    for measure, told in (("which", "which n"), ("beats", "tested")):
        if measure in row:
            row[told] = int(maps[measure].notna().sum())
    if "error" in maps and maps["error"].notna().any():
        row["error"] = float(maps["error"].median())
    return row


def _with_shares(maps: pd.DataFrame) -> pd.DataFrame:
    """And of every map, beside that of the same question on the other branch, what share of both is on sound."""
    maps = maps.assign(sound=math.nan, brought=math.nan)
    if "heat" not in maps:
        return maps
    key = ["clip", "question", "way"]
    for own, other in OTHER.items():
        beside, rows = maps[maps["explained"] == other].set_index(key), maps["explained"] == own
        listens = maps.loc[rows, "question"].isin(LISTEN)
        for measure, share in (("heat", "sound"), ("brings", "brought")):
            here = maps.loc[rows, measure].abs()
            there = beside[measure].abs().reindex(pd.MultiIndex.from_frame(maps.loc[rows, key])).set_axis(here.index)
            both = (here + there).where(lambda sums: sums > 0)
            maps.loc[rows, share] = here.where(listens, there) / both
    return maps


# ------------------------------------------------------------------------- as text

Cell = Callable[..., str]
# heading -> what is explained, what is asked, and the measure
_CHECKS = {
    "which thing": (MODEL, "looking", "which"),
    "random weights, which thing": (RANDOM, "looking", "which"),
    "things of other clips": (MODEL, "looking", "elsewhere"),
    "sound swapped, new": (SWAPPED, "listening", "pointing"),
    "old": (SWAPPED, "listening", "distractor"),
    "random weights, sound": (RANDOM, "listening", "pointing"),
    "heat on sound, looking": (MODEL, "looking", "sound"),
    "listening": (MODEL, "listening", "sound"),
    "random weights, looking": (RANDOM, "looking", "sound"),
    "random weights, listening": (RANDOM, "listening", "sound"),
}


def markdown(table: pd.DataFrame) -> str:
    """Two tables as text. How often each way points at the cause, by kind of question, and, asked to look, at the thing that
    was not asked about; how its places rank; what share of its maps is true by `vlt.faithfulness`; and its cost. Chance is
    that of the rows above it. Then the checks: of maps on exactly one of the two things, how many are on the right one, in
    the model and with random weights; how often the hottest place is of the things of other clips; with another clip's
    sound, how often it is where that sounds, and where the clip's own did, beside random weights; and what share of the
    heat is on sound, asked to look and to listen."""
    own, cell = table[table["explained"] == MODEL], _cells(table)
    kinds = [kind for kind in (*LOOK, *LISTEN) if kind in set(own["question"])]
    own = own[own["question"].isin(kinds)]
    told = [f"true (n {int(own.groupby('way')['tested'].sum().max())})"] if "beats" in own else []
    lines = []
    for ways in _alike(own):
        for way in ways:
            rows = own[own["way"] == way]
            points = [*(cell(MODEL, kind, way, "pointing") for kind in kinds), cell(MODEL, "looking", way, "distractor")]
            ranks = [cell(MODEL, asked, way, "rank") for asked in POOLED]
            tested = rows[rows["beats"].notna()] if told else rows[:0]
            beats = [f"{np.average(tested['beats'], weights=tested['tested']):.2f}"] if len(tested) else ["-"] * len(told)
            cost = [*(f"{rows[name].mean():.0f}" for name in ("forwards", "backwards")), f"{rows['seconds'].mean():.1f}"]
            lines.append([way, *points, *ranks, *beats, *cost])
        chance = own[own["way"].isin(ways)].groupby("question")["chance"].mean().reindex(kinds)
        lines.append(["*chance*", *map(_number, chance), "", *["0.50"] * 2, *[f"{LEVEL} to {AT_MOST}"] * len(told), *[""] * 3])
    n = own.groupby("question")["n"].max()
    head = ["way", *(f"{kind} (n {int(n[kind])})" for kind in kinds), "other thing", "rank, looking", "rank, listening"]
    out = evaluate.as_table([*head, *told, "forwards", "backwards", "seconds"], lines)
    return (
        out
        if set(table["explained"]) == {MODEL}
        else f"{out}\n\nChecks, of every second clip (which thing, with its interval, in all):\n\n{_checks(table, cell)}"
    )


def _checks(table: pd.DataFrame, cell: Cell) -> str:
    lines = [
        [way, *(cell(explained, asked, way, measure) for explained, asked, measure in _CHECKS.values())]
        for way in dict.fromkeys(table["way"])
    ]
    by_chance = ["0.50" if measure == "which" else "" for *_, measure in _CHECKS.values()]
    return evaluate.as_table(["way", *_CHECKS], [*lines, ["*chance*", *by_chance]])


def _cells(table: pd.DataFrame) -> Cell:
    """What stands in the table, as text."""
    rows = table.set_index(["explained", "question", "way"]).to_dict("index")

    def cell(explained: str, question: str, way: str, measure: str) -> str:
        row = rows.get((explained, question, way), {})
        text = _number(row.get(measure))
        return (
            text if measure != "which" or text == "-" else f"{text} ({_number(row['which low'])}-{_number(row['which high'])})"
        )

    return cell


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


def _alike(own: pd.DataFrame) -> list[list[str]]:
    """Ways in their order, those together that would get the same by chance."""
    chance = own.pivot_table("chance", "way", "question")
    out: list[list[str]] = []
    for way in dict.fromkeys(own["way"]):
        same = out and (chance.loc[way] - chance.loc[out[-1][0]]).abs().max() < 1e-9
        out = [*out[:-1], [*out[-1], way]] if same else [*out, [way]]
    return out
