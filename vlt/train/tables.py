"""From maps whose cause is known to tables: how often each way points at it, with 95 % intervals in which a clip counts once,
however many questions were asked about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

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
    explained; and way. n maps of so many clips; of every measure the mean over clips (of a clip's maps: their mean);
    "x clips", in how many it was measured; "x low" and "x high", its 95 % interval, for which each clip is one draw:
    Wilson's of pointing, distractor, which and beats (a little wide where a clip has several maps), else Student's, and
    none where all clips are alike.

    pointing, mass, area, rank, chance: see `pointing.judge`. distractor: how often the hottest place is of the thing that
    was not asked about, and of a swapped sound where it was before. which: of maps that are on exactly one of the two, how
    many are on the right one; by chance one half. elsewhere: how often the hottest place is of the causes of other clips:
    chance for a way that loves some places, such as the middle. sound: of the heat on both branches, each place without
    its sign, the share on sound, of ways whose heat on both can be compared; brought: the same of what taking a whole
    branch away costs. Heat for and against on many places may be much more than what they bring together: so sound is
    compared between looking and listening, and not between ways. beats: how many of the tested maps are true by
    `vlt.faithfulness`; each way is tested by cells of its own, so ways are not compared by it. deletion, insertion, gain:
    less the mean of random maps'. error: the median. forwards, backwards, seconds: of one map.
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
        if measure in _PLAIN:
            continue
        low = high = math.nan
        if measure in _SHARES:
            low, high = evaluate.wilson(middle * len(values), len(values))
        elif values.nunique() > 1:
            low, high = map(float, student.interval(0.95, len(values) - 1, middle, values.sem()))
            if measure in _UNIT:
                low, high = max(low, 0.0), min(high, 1.0)
        row |= {f"{measure} clips": len(values), f"{measure} low": low, f"{measure} high": high}
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

Cell = Callable[[str, str, str, str], str]
_LEGEND = (
    "Shares of maps whose hottest place is on the cause, of n questions that were answered rightly and have another answer for "
    "the other thing. other thing: on the one that was not asked about. rank: how often a place of the cause is hotter than "
    "another. forwards, backwards: through the language model; they and seconds are a map's, on average."
)
_TRUE = " true: by vlt.faithfulness, so that the answer hangs on where it is hot, the cause or not."
# what stands over a table -> heading -> what is explained, what is asked, and the measure
_CHECKS = {
    "Which thing? Shares of maps whose hottest place is on the thing that was asked about, on the other one, and on things of "
    "other clips; which thing: where it is on exactly one of the two, on the right one. In brackets 95 % intervals; random "
    "weights, and all below that the model is compared with, are of every second clip.": {
        "thing": (MODEL, "looking", "pointing"),
        "other thing": (MODEL, "looking", "distractor"),
        "things of other clips": (MODEL, "looking", "elsewhere"),
        "which thing": (MODEL, "looking", "which"),
        "random weights, thing": (RANDOM, "looking", "pointing"),
        "random weights, other thing": (RANDOM, "looking", "distractor"),
        "random weights, which thing": (RANDOM, "looking", "which"),
    },
    "Which sound? Shares of maps whose hottest segment is the one that sounds; with the sound of another clip in its place, "
    "where that is (new), and where the clip's own was (old).": {
        "which sound": (MODEL, "listening", "pointing"),
        "random weights": (RANDOM, "listening", "pointing"),
        "swapped, new": (SWAPPED, "listening", "pointing"),
        "swapped, old": (SWAPPED, "listening", "distractor"),
    },
    "Which branch? The share on sound of the heat on pictures and sound, each place without its sign, asked to look and to "
    "listen (of ways whose heat on both is in one unit); and of what is lost where each branch is taken away whole.": {
        "looking": (MODEL, "looking", "sound"),
        "listening": (MODEL, "listening", "sound"),
        "random weights, looking": (RANDOM, "looking", "sound"),
        "random weights, listening": (RANDOM, "listening", "sound"),
        "taken away, looking": (MODEL, "looking", "brought"),
        "taken away, listening": (MODEL, "listening", "brought"),
    },
}


def markdown(table: pd.DataFrame) -> str:
    """As text, with what the columns are: by kind of question; and what must not work, asked to look and to listen. Chance
    is that of the rows above it (of ranks one half, by a map that loves no place)."""
    own, cell = table[table["explained"] == MODEL], _cells(table)
    kinds = [kind for kind in (*LOOK, *LISTEN) if kind in set(own["question"])]
    tested = own[own["beats"].notna()] if "beats" in own else own[:0]
    true = {name: some["beats clips"].max() for name, some in tested.groupby("question", sort=False) if name in POOLED}
    own = own[own["question"].isin(kinds)]
    lines = []
    for ways in _alike(own):
        for way in ways:
            rows = own[own["way"] == way]
            points = [*(cell(MODEL, kind, way, "pointing") for kind in kinds), cell(MODEL, "looking", way, "distractor")]
            ranks = [cell(MODEL, asked, way, "rank") for asked in POOLED]
            beats = [cell(MODEL, asked, way, "beats") for asked in true]
            cost = [*(f"{rows[name].mean():.0f}" for name in ("forwards", "backwards")), f"{rows['seconds'].mean():.1f}"]
            lines.append([way, *points, *ranks, *beats, *cost])
        chance = own[own["way"].isin(ways)].groupby("question")["chance"].mean().reindex(kinds)
        level = [f"{LEVEL} to {AT_MOST}"] * len(true)
        lines.append(["*chance*", *map(_number, chance), "", *["0.50"] * 2, *level, *[""] * 3])
    n = own.groupby("question")["n"].max()
    head = ["way", *(f"{kind} (n {int(n[kind])})" for kind in kinds), "other thing", "rank, looking", "rank, listening"]
    trues = [f"true, {asked} (clips {int(clips)})" for asked, clips in true.items()]
    out = [evaluate.as_table([*head, *trues, "forwards", "backwards", "seconds"], lines), _LEGEND + _TRUE * bool(true)]
    if RANDOM in set(table["explained"]):
        out += [f"{told}\n\n{_check(table, columns)}" for told, columns in _CHECKS.items() if _has_any(table, columns)]
    return "\n\n".join(out)


def _has_any(table: pd.DataFrame, columns: Mapping[str, tuple[str, str, str]]) -> bool:
    cell = _cells(table)
    return any(cell(by, asked, way, of) != "-" for by, asked, of in columns.values() for way in set(table["way"]))


def _check(table: pd.DataFrame, columns: Mapping[str, tuple[str, str, str]]) -> str:
    lines, cell, heads, chance = [], _cells(table, intervals=True), ["way"], ["*chance*"]
    for name, (explained, asked, measure) in columns.items():
        rows = table[(table["explained"] == explained) & (table["question"] == asked) & table.get(measure, table["n"]).notna()]
        clips = rows["clips" if measure in _PLAIN else f"{measure} clips"].max() if measure in table and len(rows) else 0
        heads.append(f"{name} (clips {int(clips)})")
        by_lot = _number(rows["chance"].mean()) if asked == "listening" else ""
        chance.append("0.50" if measure == "which" else by_lot if measure in ("pointing", "distractor") else "")
    for way in dict.fromkeys(table["way"]):
        line = [cell(explained, asked, way, measure) for explained, asked, measure in columns.values()]
        lines += [[way, *line]] if set(line) != {"-"} else []
    return evaluate.as_table(heads, [*lines, chance] if any(chance[1:]) else lines)


def _cells(table: pd.DataFrame, intervals: bool = False) -> Cell:
    """What stands in the table, as text."""
    rows = table.set_index(["explained", "question", "way"]).to_dict("index")

    def cell(explained: str, question: str, way: str, measure: str) -> str:
        row = rows.get((explained, question, way), {})
        text, bounds = (_number(row.get(measure)), [_number(row.get(f"{measure} {end}")) for end in ("low", "high")])
        return f"{text} ({'-'.join(bounds)})" if intervals and "-" not in bounds else text

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
