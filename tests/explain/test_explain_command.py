"""`vlt explain` and `vlt truth` as people use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.explain.conftest import CLIPS
from tests.test_cli import here, refused, vlt
from vlt.cli.explain import _measured, _two, _usual, _where
from vlt.explain.attribution import attribute
from vlt.explain.faithfulness import faithfulness
from vlt.probe.trace import Trace


def test_explain_writes_figures_and_numbers(tmp_path: Path) -> None:
    out = tmp_path / "why"
    done = vlt("explain", CLIPS / "two_bell.mp4", "--ask", "What do you hear?", "--target", "bell", "--at", "parts", "--at",
               "audio_features", "--method", "ablation", "--controls", 19, "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {f"{at}{end}" for at in ("parts", "audio_features") for end in (".png", ".csv", "-faithfulness.png")}
    assert {p.name for p in out.iterdir()} == names | {"explanation.json"}
    told = json.loads((out / "explanation.json").read_text())
    assert told["answer"] == "I hear a bell." and told["target"] == "bell"
    parts, features = told["heat"]
    assert parts["hottest"] == {"part": 1, "kind": "segment", "number": 1, "seconds": 2.0}
    assert features["hottest"]["start"] == 2.0 and features["beats"]["deletion"] in (True, False)
    table = pd.read_csv(out / "parts.csv")
    assert table["kind"].value_counts().to_dict() == {"frame": 8, "segment": 8, "word": 5}
    assert int(table["heat"].argmax()) == 1
    assert parts["true"] and not parts["warnings"] and "true of whole segments" not in parts
    assert "answer  I hear a bell." in done.stdout and "segment 1, at 2.0 s" in done.stdout
    assert "deletion: mean score as the hottest places are taken away, low is good" in done.stdout
    assert "as wholes: so of whole frames, or segments" in done.stdout and f"yes, p {parts['p']:.2f}" in done.stdout


def test_whole_segments_are_tested_apart(bell: Trace) -> None:
    """Integrated gradients know the segment of the bell, and of its mel cells which have most."""
    heat = attribute(bell, "spectrograms", "integrated_gradients", "bell", n_steps=32, progress=False)
    truth, row = _measured(heat, 19, 0, 0)
    whole = faithfulness(heat, cells={"mel": 128, "time": 204}, controls=19, progress=False)
    assert truth is not None and not truth.true and whole.true
    assert row["warnings"] == [truth.warning, "Of whole segments it is shown, but not where in them (p = 0.05)."]
    assert truth.warning.startswith("Moved elsewhere by lot, it does as well (p = ")
    assert row["true of whole segments"] and row["p of them"] == whole.p == 0.05 < truth.p == row["p"]
    assert whole.table["shifted p"]["gain"] == 1 / 8 and whole.warning == ""  # it beats all the moves that there are
    wrong = attribute(bell, "spectrograms", "relevance", "bell", progress=False)  # hottest in silence
    whole = faithfulness(wrong, cells={"mel": 128, "time": 204}, controls=19, progress=False)
    row = _measured(wrong, 19, 0, 0)[1]
    assert not row["true of whole segments"] and row["p of them"] == whole.p > 0.2


def test_explain_a_picture(tmp_path: Path) -> None:
    """One frame is too few for a test of whole frames; its pixels are tested."""
    Image.fromarray(np.full((64, 64, 3), 90, dtype=np.uint8)).save(tmp_path / "grey.png")
    done = here("explain", tmp_path / "grey.png", "--ask", "What do you see?", "--method", "gradient_x_input", "--at", "frames",
               "--controls", 19, "--out", tmp_path / "why")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note    the box: it knows one small world" in done.stdout
    (row,) = json.loads((tmp_path / "why" / "explanation.json").read_text())["heat"]
    assert not [name for name in row if name.startswith("true of whole")] and "random p" in row["faithfulness"]["gain"]


def test_what_a_method_has_no_heat_at_is_left_out_or_refused(tmp_path: Path) -> None:
    asked = ("explain", CLIPS / "two_bell.mp4", "--ask", "What do you hear?", "--controls", 0)
    done = here(*asked, "--method", "attention", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "a").glob("*.png")} == {"frames.png", "spectrograms.png"}
    assert "parts are left out: attention has no heat there" in done.stdout
    done = here(*asked, "--method", "grad_cam", "--at", "audio_features", "--at", "audio_queries", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        "audio_features.csv", "audio_features.png", "audio_queries.csv", "audio_queries.png", "explanation.json",
    }  # fmt: skip
    late = here(*asked, "--method", "attention", "--at", "frames", "--at", "parts", "--out", tmp_path / "c")
    refused(late, "attention has heat at prefix, frames")


def test_what_is_printed_is_short(bell: Trace) -> None:
    assert [_two(value) for value in (-0.001, 0.004, -0.006, 7.1)] == ["0.00", "0.00", "-0.01", "7.10"]
    heat = attribute(bell, "audio_features", "gradient_x_input", "bell", progress=False)
    for told in (heat, faithfulness(heat, steps=2, controls=19, progress=False)):
        assert "\n" not in repr(told) and len(repr(told)) < 500


@pytest.mark.parametrize(
    ("hottest", "told"),
    [
        ({"part": 9, "kind": "frame", "number": 1, "seconds": 2.0}, "frame 1, at 2.0 s"),
        ({"part": 20, "kind": "word", "number": 3, "word": " hear"}, "word 3, 'hear'"),
        ({"frame": 6, "frame_number": 96, "seconds": 12.0, "patch": 0}, "frame 6, at 12.0 s, class token"),
        ({"frame": 6, "seconds": 12.0, "height": 44, "width": 23}, "frame 6, at 12.0 s, pixel row 44, column 23 of the model's picture"),
        ({"segment": 1, "start": 2.0, "end": 4.0, "mel": 9, "hz": 439.6, "time": 82, "segment_seconds": 0.83},
         "segment 1, at 2.8 s, 440 Hz"),
        ({"segment": 6, "start": 12.0, "end": 14.0}, "segment 6, at 12.0 s"),
        ({"token": 29, "group": "audio", "query": 7}, "token 29, audio, query 7"),
        ({"token": 2, "word": " are", "group": "prompt", "query": -1}, "token 2, 'are', prompt"),
        ({"video_query": 10}, "video query 10"),
    ],
)  # fmt: skip
def test_the_hottest_place_is_told_in_words(hottest: dict[str, object], told: str) -> None:
    assert _where(hottest, 1) == told and _where(hottest, 3) == f"{told} (the first of 3 alike)"


def test_parts_are_by_taking_away_if_nothing_else_is_asked_for(tmp_path: Path) -> None:
    """On the way from a blank frame to a whole one gradients find much that taking frames away does not: the circle is red
    in all of them."""
    done = here("explain", CLIPS / "two_bell.mp4", "--ask", "What colour is the circle?", "--target", "red", "--rather", "white",
                "--at", "parts", "--at", "audio_features", "--option", "n_samples=30", "--option", "n_steps=16", "--controls", 0,
                "--out", tmp_path / "why")  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts, features = json.loads((tmp_path / "why" / "explanation.json").read_text())["heat"]
    assert (parts["method"], features["method"]) == ("shapley_sampling", "integrated_gradients")
    assert (parts["alike"], features["alike"]) == (1, 1)
    assert " parts           shapley sampling " in done.stdout and " audio_features  integrated gradients " in done.stdout
    assert parts["forwards"] == 30 * 22 + 1 and features["backwards"] == 16
    heat = pd.read_csv(tmp_path / "why" / "parts.csv").query("kind == 'frame'")["heat"]
    assert (heat > -0.3).all() and heat.max() < 3


def test_parts_have_no_mean(tmp_path: Path) -> None:
    done = here("explain", CLIPS / "sound_only.mp4", "--ask", "What do you hear?", "--method", "saliency", "--controls", 0,
                "--target", "chirp", "--baseline", "mean", "--out", tmp_path / "why")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "why" / "explanation.json").read_text())["heat"]
    assert row["at"] == "spectrograms" and row["baseline"] == "mean"
    assert done.stderr == "" and "parts are left out: they have no --baseline mean" in done.stdout  # no bars where nobody looks


def test_what_reads_attention_is_shaken_where_the_model_is_given_something() -> None:
    both = ("video", "audio")
    assert _usual("relevance", both, "blank", 2) == ["frames", "spectrograms"]
    assert _usual("relevance", both, "blank", 0) == _usual("ablation", both, "blank", 2) == ["parts", "frames", "spectrograms"]


def test_sensitivity_is_measured_where_it_is_asked_for(bell: Trace) -> None:
    heat = attribute(bell, "audio_features", "gradient_x_input", "bell", progress=False)
    row, without = (_measured(heat, 19, shaken, 0)[1]["faithfulness"] for shaken in (2, 0))
    assert row["sensitivity"]["value"] > 0 and "sensitivity" not in without


def test_explain_what_a_clip_has(tmp_path: Path) -> None:
    """A clip that is only heard has no frames to explain; nor is anything measured where that is not asked for."""
    done = here("explain", CLIPS / "sound_only.mp4", "--ask", "What do you hear?", "--method", "gradient_x_input", "--controls", 0,
               "--rather", "hum", "--target", "chirp", "--out", tmp_path / "why")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "why" / "explanation.json").read_text())
    assert [row["at"] for row in told["heat"]] == ["parts", "spectrograms"] and told["target"] == ["chirp", "hum"]
    assert all("faithfulness" not in row for row in told["heat"])
    assert {p.name for p in (tmp_path / "why").iterdir()} == {
        "explanation.json", "parts.png", "parts.csv", "spectrograms.png", "spectrograms.csv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lime"], "no method 'lime'; all: saliency"),
        (["--controls", "20000"], "20000 controls; needed are 19"),
        (["--target", "buzz"], "the answer has no word 'buzz'"),
        (["--at", "frame"], "there is no attribution at 'frame'; nearest: frames; all: frames, patches"),
        (["--baseline", "black"], "no baseline 'black'; nearest: blank; all: blank, zero, mean, or a tensor"),
        (["--option", "n_stepz=3"], "no such option; integrated_gradients has n_steps; shapley_sampling has n_samples"),
        (["--option", "n_samples=0"], "n_samples = 0; expected a whole number from 1 on"),
        (["--option", "n_samples"], "--option n_samples: expected NAME=VALUE, as n_samples=100"),
        (
            ["--option", "n_samples=9", "--baseline", "zero"],
            "--option n_samples=9: no such option; integrated_gradients has n_steps",
        ),
        (["--option", "n_steps=32", "--at", "parts"], "--option n_steps=32: no such option; shapley_sampling has n_samples"),
        (["--shaken", "2", "--controls", "0"], "--shaken 2: nothing is measured with --controls 0"),
        (["--rather", "buzz"], "--rather buzz wants a word that is said rather: add --target WORD"),
    ],
)
def test_refusals_leave_nothing_behind(arguments: list[str], message: str, tmp_path: Path) -> None:
    refused(
        here("explain", CLIPS / "two_bell.mp4", "--ask", "What do you hear?", "--out", tmp_path / "why", *arguments), message
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(here("explain", CLIPS / "two_bell.mp4", "--out", tmp_path), "exists, and is not an empty folder; give a new one")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    refused(here("explain", CLIPS / "two_bell.mp4", "--out", tmp_path / "no" / "why"), "is no folder that can be written in")


def test_the_verdict_stands_also_where_there_is_little_to_explain(tmp_path: Path) -> None:
    done = here("explain", CLIPS / "two_bell.mp4", "--ask", "What do you hear?", "--method", "gradient_x_input", "--target", "bell",
                "--at", "patches", "--controls", 19, "--out", tmp_path / "why")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "why" / "explanation.json").read_text())["heat"]
    assert f"{'yes' if row['true'] else 'no'}, p {row['p']:.2f}" in done.stdout and "little to explain." in done.stdout
    assert {"patch", "patch_row", "frame_number", "seconds"} <= set(row["hottest"])
    told = "frame {frame}, at {seconds:.1f} s, patch row {patch_row:.0f}, column {patch_column:.0f}".format(**row["hottest"])
    assert _where(row["hottest"], 1) == told and f"frame {row['hottest']['frame']}, at" in done.stdout


def test_truth_prints_and_draws(tmp_path: Path) -> None:
    ways = ["gradient x input"]
    done = here(
        "truth", "--clips", 2, "--way", *ways, "--controls", 0, "--json", tmp_path / "a.json", "--figure", tmp_path / "a.png"
    )
    assert done.returncode == 0, done.stderr
    rows = pd.DataFrame(json.loads((tmp_path / "a.json").read_text()))
    assert set(rows["way"]) == set(ways) and {"model", "random weights", "other branch"} <= set(rows["explained"])
    rows = rows[rows["pointing"].notna()]
    assert ((rows["pointing"] >= rows["pointing low"] - 1e-9) & (rows["pointing"] <= rows["pointing high"] + 1e-9)).all()
    assert done.stdout.startswith("| way | ") and "*chance*" in done.stdout
    assert "\nWhich thing? Shares of maps" in done.stdout  # also where faithfulness is not measured
    assert "Which branch?" in done.stdout and "true: by vlt.faithfulness" not in done.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
    refused(here("truth", "--way", "tea leaves"), "no way 'tea leaves'; all: saliency; gradient x input")
