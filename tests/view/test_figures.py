"""Every figure is drawn of real runs of the box, and read back: what its artists hold is what was given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.text import Text
from PIL import Image

import vlt
from vlt.errors import VltError
from vlt.inputs.video import denormalise
from vlt.model.video_llama import VideoLlama
from vlt.probe.lens import lens
from vlt.probe.trace import Trace
from vlt.view import figures
from vlt.view.drawing import COLOURS, Figure, Scale, shown, signed, times

BOXED = Path(__file__).parents[2] / "data" / "clips"


@pytest.fixture(scope="module")
def run(boxed: VideoLlama) -> Trace:
    return vlt.trace(boxed, vlt.Clip(BOXED / "two_bell.mp4"), "What do you hear?")


@pytest.fixture(scope="module")
def silent(boxed: VideoLlama) -> Trace:
    return vlt.trace(boxed, vlt.Clip(BOXED / "silent.mp4"), "What colour is the circle?")


@pytest.fixture(scope="module")
def found(run: Trace) -> xr.Dataset:
    return vlt.path(run, "bell")


@pytest.fixture(autouse=True)
def nothing_stays_open():
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def written(figure: Figure) -> list[Text]:
    """The texts that one sees: not those of ticks that lie outside."""
    figure.canvas.draw()
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = axis._update_ticks() if axes.axison else []
            outside |= {label for tick in axis.majorTicks if tick not in drawn for label in (tick.label1, tick.label2)}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in outside]


def check_looks(figure: Figure) -> list[str]:
    """Nothing is cut off, nothing is too small to be read, no text lies on another. Returns what is written."""
    texts = written(figure)
    boxes = [text.get_window_extent() for text in texts]
    whole = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 7, text
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, f"cut off: {text}"
    for i, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        for other, beside in zip(texts[:i], boxes, strict=False):
            across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert across < 2 or down < 2, f"{text} lies on {other}"
    return [text.get_text() for text in texts]


def pictures(figure: Figure, cmap: str) -> list[np.ndarray]:
    return [np.asarray(i.get_array()) for a in figure.axes for i in a.images if i.cmap.name == cmap and i.get_array().ndim == 2]


def bars(figure: Figure) -> list:
    return [bar for axes in figure.axes for bar in axes.patches]


def top_of(heat: xr.DataArray) -> dict[str, int]:
    return {str(k): int(v) for k, v in heat.argmax(...).items()}


# ---------------------------------------------------------------------- frames


def test_heat_over_frames(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_frames(run, found.video, "relevance")
    said = check_looks(figure)
    assert len(figure.axes) == 8 + 8 + 1
    drawn = pictures(figure, "cividis")
    np.testing.assert_array_equal(np.stack(drawn), found.video.values)
    for axes in figure.axes[8:16]:  # the picture under the heat is the same way up
        grey, heat = axes.images
        np.testing.assert_array_equal(np.sign(np.diff(grey.get_extent())), np.sign(np.diff(heat.get_extent())))
        assert grey.get_extent() == heat.get_extent() and grey.origin == heat.origin == "upper"
    limits = {i.get_clim() for a in figure.axes for i in a.images if i.cmap.name == "cividis" and i.get_array().ndim == 2}
    assert limits == {(0.0, found.video.values.max())}  # one scale
    seen = denormalise(run.stage("frames")[0]).numpy()
    np.testing.assert_array_equal(np.stack([figure.axes[i].images[0].get_array() for i in range(8)]), seen)
    assert {f"frame {i}" for i in range(8)} | {f"{2 * i:.1f} s" for i in range(8)} <= set(said)
    assert any(re.fullmatch(r"relevance(\s\(10⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+\))?", text) for text in said)
    at = top_of(found.video)
    assert figure.alt == (
        f"Relevance over 8 frames; most ({found.video.values.max():.2g}) at frame {at['frame']} "
        f"({found.video.seconds.values[at['frame']]:.1f} s), patch row {at['patch_row']}, column {at['patch_column']}."
    )


def test_frames_as_bars(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_frames(run, found.frame_tokens)
    assert any("image queries 0 to 7" in text and "(s)" in text for text in check_looks(figure))
    assert [bar.get_height() for bar in bars(figure)] == found.frame_tokens.values.ravel().tolist()
    at = top_of(found.frame_tokens)
    assert f"at frame {at['frame']} ({2 * at['frame']:.1f} s), image query {at['image_query']}." in figure.alt
    each = found.frame_tokens.sum("image_query")
    assert [bar.get_height() for bar in bars(figures.over_frames(run, each))] == each.values.tolist()


def test_attention_is_unfolded_onto_frames(run: Trace) -> None:
    looked = run.attention("image_qformer.0.cross", rows=2, mean=True)
    figure = figures.over_frames(run, looked)
    np.testing.assert_array_equal(np.stack(pictures(figure, "cividis")), looked.values[:, 0, 1:].reshape(8, 8, 8))
    assert figure.alt.startswith("Attention probability over 8 frames")
    looked = run.attention("vision_model.1.self", rows="class", head=0)
    np.testing.assert_array_equal(
        np.stack(pictures(figures.over_frames(run, looked), "cividis")), looked.values[:, 0, 0, 1:].reshape(8, 8, 8)
    )
    looked = run.attention("video_qformer.1.cross", rows=4, mean=True)
    assert [bar.get_height() for bar in bars(figures.over_frames(run, looked))] == looked.values.ravel().tolist()


def test_some_frames_and_a_given_scale(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_frames(run, found.video[[6, 3]], top=1.0)
    assert {"frame 6", "frame 3", "12.0 s"} <= set(check_looks(figure))
    assert figure.axes[2].images[1].get_clim() == (0.0, 1.0)
    check_looks(figures.over_frames(run, found.frame_tokens[[3]]))


def test_more_frames_than_a_line_holds(boxed: VideoLlama) -> None:
    run = vlt.trace(boxed, vlt.Clip(BOXED / "two_bell.mp4"), "What do you hear?", n_frames=11)
    heat = xr.DataArray(np.arange(11 * 64.0).reshape(11, 8, 8), dims=["frame", "patch_row", "patch_column"])
    figure = figures.over_frames(run, heat)
    assert len(figure.axes) == 2 * 11 + 1
    assert "frame 10" in check_looks(figure)
    assert "most (7e+02) at frame 10 (14.50 s), patch row 7, column 7." in figure.alt


def test_numbers_below_zero_get_purple_and_orange(run: Trace, found: xr.Dataset) -> None:
    less = found.video - found.video.mean()
    figure = figures.over_frames(run, less)
    np.testing.assert_array_equal(np.stack(pictures(figure, "PuOr_r")), less.values)
    low, high = figure.axes[-2].images[1].get_clim()
    assert low == -high


# ---------------------------------------------------------------------- sound


def test_heat_over_sound(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_sound(run, found.audio, "relevance")
    said = check_looks(figure)
    assert {"time (s)", "frequency\n(Hz)", "power (dB)", "1000", "7000"} <= set(said)
    heat = [i for a in figure.axes for i in a.images if i.cmap.name == "cividis" and i.get_array().ndim == 2]
    np.testing.assert_array_equal(np.stack([i.get_array() for i in heat]), found.audio.values)
    for i, (start, end) in zip(heat, zip(found.start.values, found.end.values, strict=True), strict=True):
        left, right, low, high = i.get_extent()
        assert start <= left < right <= end
        assert (low, high) == (-0.5, 127.5)
    at = top_of(found.audio)
    here = found.audio.isel(at)
    first = float(here.start + here.segment_seconds)
    assert f"most ({found.audio.values.max():.2g}) in segment {at['segment']} " in figure.alt
    assert f"({float(here.start):.1f} to {float(here.end):.1f} s), at {first:.2f} to {first + 0.15:.2f} s" in figure.alt
    assert f"and {float(here.hz_low):.0f} to {float(here.hz_high):.0f} Hz." in figure.alt


def test_spectrograms_are_without_padding(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_sound(run, found.segments)
    drawn = pictures(figure, "Greys")[:8]
    assert [picture.shape for picture in drawn] == [(128, 198)] * 8  # of 204 columns the last six are padding
    value = run["spectrograms"].values[:, 0, :, :198]
    np.testing.assert_allclose(np.stack(drawn), 10 * np.log10(np.exp(value * 9.138 - 4.268)), atol=1e-3)
    assert [bar.get_height() for bar in bars(figure)] == found.segments.values.tolist()
    assert [bar.get_x() for bar in bars(figure)] == found.start.values.tolist()
    check_looks(figure)


def test_sound_that_begins_late_is_drawn_whole(boxed: VideoLlama, media) -> None:
    clip = vlt.Clip(media("later.mp4", seconds=6.0, sound_after=3.0))
    run = vlt.trace(boxed, clip, "What do you hear?")
    drawn = pictures(figures.over_sound(run, xr.DataArray(np.arange(8.0), dims=["segment"])), "Greys")
    assert clip.sound.start == pytest.approx(3, abs=0.05) and [picture.shape for picture in drawn] == [(128, 198)] * 8


def test_attention_is_unfolded_onto_sound(run: Trace) -> None:
    looked = run.attention("imagebind.1.self", rows="class", mean=True)
    figure = figures.over_sound(run, looked)
    drawn = [p for p in pictures(figure, "cividis") if p.shape == (8, 12)]
    np.testing.assert_array_equal(np.stack(drawn), looked.values[:, 0, 1:-1].reshape(8, 8, 12))


@pytest.mark.parametrize("what", ["heat for 'bell' rather than 'hum'", "heat for 'triangle' rather than 'square'"])
def test_a_contrast_is_told_beside_the_bar(what: str, run: Trace) -> None:
    looked = run.attention("imagebind.1.self", rows="class", mean=True)
    said = check_looks(figures.over_sound(run, looked, what))
    assert what in [text.replace("\n", " ") for text in said]


def test_segments_that_overlap_stand_side_by_side(boxed: VideoLlama) -> None:
    run = vlt.trace(boxed, vlt.Clip(BOXED / "two_bell.mp4"), "What do you hear?", coverage="original")
    heat = xr.DataArray(np.arange(8.0), dims=["segment"])
    figure = figures.over_sound(run, heat)
    said = check_looks(figure)
    assert {"0.00", "1.75", "12.25", "start of each segment in the sound (s); segments stand side by side"} <= set(said)
    at = sorted(i.get_extent()[:2] for i in figure.axes[0].images)
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(at))
    assert figure.alt == "Heat over 8 segments of sound; most (7) in segment 7 (12.25 to 14.25 s)."


def test_silence_is_drawn(run: Trace) -> None:
    muted = run.rerun(vlt.edits.mute())
    check_looks(figures.over_sound(muted, muted.attention("audio_qformer.1.cross", rows=0, mean=True)))


# ---------------------------------------------------------------------- tokens


def test_heat_over_tokens(run: Trace, found: xr.Dataset) -> None:
    figure = figures.over_tokens(run, found.tokens, "relevance")
    check_looks(figure)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_array(), found.tokens.values)
    words = [str(q) if q >= 0 else shown(w) for w, q in zip(found.word.values, found["query"].values, strict=True)]
    assert [t.get_text() for t in axes.texts][: len(words)] == words
    assert [t.get_text() for t in axes.texts][len(words) :] == [
        "prompt", "audio", "prompt", "video", "prompt", "question", "prompt", "answer",
    ]  # fmt: skip
    at = int(found.tokens.values.argmax())
    soft = found["query"].values[at] >= 0
    name = f"{found['group'].values[at]} {words[at]}" if soft else f"'{words[at]}'"
    assert figure.alt == f"Relevance over 96 tokens; most ({found.tokens.values.max():.2g}) at token {at}, {name}."
    boxes = [path.get_extents() for path in axes.collections[0].get_paths()]
    assert max(box.x1 for box in boxes) <= axes.get_xlim()[1]
    for text, box in zip(axes.texts, boxes, strict=False):  # every word is inside its box
        inside = text.get_window_extent().transformed(axes.transData.inverted())
        assert box.x0 - 0.01 <= inside.x0 and inside.x1 <= box.x1 + 0.01


def test_heat_from_a_file_is_drawn(run: Trace, found: xr.Dataset, tmp_path: Path) -> None:
    """Files keep numbers in other dtypes."""
    found.to_netcdf(tmp_path / "heat.nc", engine="scipy")
    with xr.load_dataset(tmp_path / "heat.nc", engine="scipy") as again:
        assert figures.path(run, again).alt == figures.path(run, found).alt


def test_some_tokens(run: Trace) -> None:
    looked = run.attention("language_model.3.self", rows="last", columns="audio", mean=True)
    figure = figures.over_tokens(run, looked)
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), looked.values[0])
    assert f"audio {looked.values.argmax()}." in figure.alt
    check_looks(figure)


def test_no_heat_is_said(run: Trace, found: xr.Dataset) -> None:
    assert figures.over_tokens(run, found.tokens * 0).alt == "Relevance for 'bell' over 96 tokens; 0 everywhere."


@pytest.mark.parametrize(
    ("word", "seen"), [(" bell", "bell"), ("  ", "␣"), ("", ""), ("\n", "⏎"), ("a\tb", "a·b"), ("x" * 40, "x" * 27 + "…")]
)
def test_words_as_one_sees_them(word: str, seen: str) -> None:
    assert shown(word) == seen


# ---------------------------------------------------------------------- paths


def test_path(run: Trace, found: xr.Dataset) -> None:
    figure = figures.path(run, found)
    said = check_looks(figure)
    assert len(figure.axes) == (16 + 1) + (2 + 2) + (1 + 1)
    assert {"a", "b", "c", "bell"} <= set(said)
    assert sum("relevance" in text and "proves" not in text for text in said) == 3
    assert any("proves no cause" in text for text in said) and "proves no cause" in figure.alt
    parts = re.findall(r"Relevance for 'bell' over (\d+ \w+).*?\.(?: |$)(?=Rel|rel|$)", figure.alt)
    assert parts == ["8 frames", "8 segments", "96 tokens"]
    assert figures.over_frames(run, found.video, "relevance for 'bell'").alt in figure.alt
    (mark,) = [patch for axes in figure.axes for patch in axes.patches if patch.get_edgecolor()[0] > 0.8]
    boxes = figure.axes[-2].collections[0].get_paths()
    bell = run.tokens.coordinates["word"].tolist().index(" bell")
    assert boxes[bell].get_extents().x0 == pytest.approx(mark.get_x())


def test_path_of_what_there_is(silent: Trace, boxed: VideoLlama) -> None:
    figure = figures.path(silent, vlt.path(silent, 2, method="rollout"))
    assert {"a", "b"} <= set(check_looks(figure))
    assert "c" not in check_looks(figure)
    assert figure.alt.count("Rollout for 'is'") == 2
    hears = vlt.trace(boxed, vlt.Clip(BOXED / "sound_only.mp4"), "What do you hear?")
    assert "segments of sound" in figures.path(hears, vlt.path(hears, 0)).alt


# ---------------------------------------------------------------------- tables


def test_sweep(run: Trace) -> None:
    chosen = {"mute": vlt.edits.mute(), "reverse": vlt.edits.reverse(), "no video": vlt.edits.without("video")}
    table = vlt.sweep(run, chosen, progress=False)
    figure = figures.sweep(table)
    said = check_looks(figure)
    axes = figure.axes[0]
    drawn = sorted(axes.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in drawn] == table.change.tolist()
    assert [bar.get_hatch() is not None for bar in drawn] == [not same for same in table.same]
    assert [text.get_text() for text in axes.get_yticklabels()] == table.index.tolist()
    assert axes.yaxis_inverted()
    assert said.count("≠") == (~table.same).sum() == 1
    assert set(table.answer) <= set(said)
    assert axes.get_xlabel().endswith("(nats)")
    assert figure.alt == (
        "Change of the unedited answer's log-probability under 3 variants; it falls most with mute "
        f"({signed(table.change['mute'])} nats). The answer changes with mute."
    )


def test_long_names_and_answers_have_room() -> None:
    answers = ["A red circle stays still and a red square moves left. A bell sounds once, at the beginning.", "$x$\n_y_"]
    table = pd.DataFrame({"answer": answers, "same": [True, False], "change": [0.0, 0.2]}, index=["unedited", "cut " * 20])
    figure = figures.sweep(table)
    assert "$x$⏎_y_" in check_looks(figure)
    assert "under 1 variant; it falls with none." in figure.alt


def test_lens(run: Trace) -> None:
    reading = lens(run)
    figure = figures.lens(reading)
    said = check_looks(figure)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), reading.logprob.values[..., 0])
    words = reading.prediction.values[..., 0]
    assert [text.get_text() for text in axes.texts] == [shown(word) for word in words.ravel()]
    assert {"prefix", "3", "read behind layer", "token read at", "log-probability (nats)"} <= set(said)
    assert "The last reading is: I hear a bell . ###." in figure.alt
    others = [i for i in range(len(words)) if words[i, 3] != words[-1, 3]]
    assert f"'bell' from layer {reading.layer.values[others[-1] + 1]}" in figure.alt
    assert "audio 7" in check_looks(figures.lens(lens(run, "audio", k=1)))


def test_interaction(run: Trace, silent: Trace) -> None:
    shares = vlt.interaction(run)
    figure = figures.interaction(shares)
    said = check_looks(figure)
    assert [bar.get_width() for bar in figure.axes[0].patches] == shares.tolist()
    assert {"video × sound × question", "what it adds to log p(answer) (nats)", "Shapley value", "interaction"} <= set(said)
    assert f"question {signed(shares['question'])}" in figure.alt
    strongest = shares[[" x " in name for name in shares.index]].abs().idxmax()
    assert f"The strongest interaction is {strongest} (" in figure.alt
    muted = run.rerun(vlt.edits.mute(), answer=run.answer.text)
    change = signed(float(muted.logprobs.sum() - run.logprobs.sum()))
    assert f"With one left out, log p changes by: video +0.01, sound {change}, question" in figure.alt  # as a sweep tells
    check_looks(figures.interaction(vlt.interaction(silent)))


# ---------------------------------------------------------------------- attention


def test_attention_of_every_head(run: Trace) -> None:
    array = run.attention("language_model.3.self")
    figure = figures.attention(array)
    said = check_looks(figure)
    assert len(figure.axes) == 4 + 1
    np.testing.assert_array_equal(np.stack([axes.images[0].get_array() for axes in figure.axes[:4]]), array.values)
    assert {"head 0", "head 3", "audio", "video", "question", "answer", "token looked at"} <= set(said)
    assert figure.alt.startswith("Attention probability of language_model.3.self; most (1) at head")


def test_attention_rows_by_their_words(run: Trace) -> None:
    figure = figures.attention(run.attention("language_model.3.self", rows="answering", mean=True))
    assert {":", "I", "hear", "a", "bell", "."} <= set(check_looks(figure))
    longer = vlt.trace(run.model, run.clip, "What do you see, and what do you hear?")  # less room: some of the words
    said = check_looks(figures.attention(longer.attention("language_model.3.self", rows="answering")))
    assert len({text.strip() for text in longer.answer.tokens} & set(said)) >= 5


@pytest.mark.parametrize(
    ("name", "panels", "label"),
    [
        ("image_qformer.0.cross", 8, "patch, by row"),
        ("video_qformer.1.cross", 4, "frame token, by frame (s)"),
        ("audio_qformer.1.cross", 4, "segment, by start (s)"),
        ("imagebind.1.self", 8, "sound patch looked at, by row"),
        ("video_qformer.0.self", 4, "video query looked at"),
    ],
)
def test_attention_axes_are_named(run: Trace, name: str, panels: int, label: str) -> None:
    array = run.attention(name)
    array = array[:2] if array.ndim == 4 else array  # of two frames or segments
    figure = figures.attention(array)
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(np.stack(drawn), array.values.reshape(panels, *array.shape[-2:]))
    assert label in [" ".join(text.split()) for text in check_looks(figure)]


def test_attention_to_groups(run: Trace) -> None:
    groups = ["audio", "video", "question"]
    array = run.attention("language_model.3.self", rows="answering", columns=groups)
    figure = figures.attention(array)
    assert {*groups, "bell", "attention probability"} <= set(check_looks(figure))
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    np.testing.assert_array_equal(heights, array.transpose("head", "seen", "token").values.reshape(4, -1))
    assert len({bar.get_hatch() for bar in bars(figure)}) == 3
    last = run.attention("language_model.3.self", rows="last", columns=groups, mean=True)
    assert set(groups) <= set(check_looks(figures.attention(last)))


# ---------------------------------------------------------------------- what is refused


def refusals(run: Trace, silent: Trace, found: xr.Dataset) -> Sequence[tuple]:
    many = xr.DataArray(np.zeros((8, 9, 2, 2)), dims=["frame", "head", "a", "b"])
    table = pd.DataFrame({"answer": ["a"], "same": [True]})
    fewer = vlt.path(vlt.trace(run.model, run.clip, run.question, n_frames=5, answer=run.answer.text), "bell")
    otherwise = vlt.path(run.edited(vlt.edits.ask("What do you see?"), answer=run.answer.text), "bell")
    return [
        (lambda: figures.over_frames(found.video, run), r"takes the run first .* this is a DataArray"),
        (lambda: figures.over_frames(run, found.video.values), r"labelled array .* this is a ndarray"),
        (lambda: figures.over_frames(run, found.audio), r"\[frame, patch_row, patch_column\] or .* \[segment 8, mel_row 8"),
        (lambda: figures.over_frames(run, run.attention("image_qformer.0.cross")), r"this is \[frame 8, head 4, .*choose"),
        (lambda: figures.over_frames(run, found.video * np.nan), "finite numbers"),
        (lambda: figures.over_frames(run, found.video[:0]), "is empty"),
        (lambda: figures.over_frames(run, found.video.assign_coords(frame=range(1, 9))), "not those of the run, which has 8"),
        (lambda: figures.over_frames(run, found.video, top=0), "top is 0"),
        (lambda: figures.over_frames(run, run.attention("image_qformer.0.cross", mean=True, rows=0)[..., :12]), "whole grids"),
        (lambda: figures.over_frames(run, found.video[:, 1:]), "7 x 8 patches, the run's pictures have 8 x 8"),
        (lambda: figures.over_sound(silent, found.audio), "no audio"),
        (lambda: figures.over_sound(run, found.audio[:, :4]), "4 x 12 patches, the run's pictures have 8 x 12"),
        (lambda: figures.over_tokens(silent, found.tokens), "is it of another run"),
        (lambda: figures.over_tokens(run, run.attention("language_model.0.self", mean=True)), r"\[token 96, token_seen 96\]"),
        (lambda: figures.path(run, found.video), "Dataset of vlt.path"),
        (lambda: figures.path(silent, found), "this Dataset is of two_bell.mp4, the run of silent.mp4"),
        (lambda: figures.over_frames(run, fewer.video), r"what this array says of its frames \(frame_number\) is not so"),
        (lambda: figures.over_tokens(run, otherwise.tokens), r"of its tokens \(word\) is not so in the run: is it of another"),
        (lambda: figures.over_sound(run, found.audio.assign_coords(start=found.start + 1)), r"of its segments \(start\)"),
        (lambda: figures.sweep(table), "with columns answer, same, change; this is a table of answer, same"),
        (lambda: figures.sweep(found), "this is a Dataset"),
        (lambda: figures.lens(found), "Dataset of lens"),
        (lambda: figures.lens(lens(run, "all")), "30 tokens at most; this has 96"),
        (lambda: figures.interaction(pd.Series({"a": 1.0})), "'question' among its names"),
        (lambda: figures.attention(found.tokens), r"this is \[token\]"),
        (lambda: figures.attention(many), "64 panels"),
        (lambda: figures.attention(run.attention("language_model.0.self", columns=["audio", "video"] * 4)), "7 groups"),
    ]  # fmt: skip


def test_what_cannot_be_drawn_is_refused_in_one_line(run: Trace, silent: Trace, found: xr.Dataset) -> None:
    for make, message in refusals(run, silent, found):
        with pytest.raises(VltError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- files, notebooks, threads


def test_saved_files_say_what_they_show(run: Trace, found: xr.Dataset, tmp_path: Path) -> None:
    figure = figures.over_frames(run, found.video[:2], "relevance & <more>")
    for kind in ("png", "svg", "pdf"):
        figures.save(figure, tmp_path / f"a.{kind}")
        figures.save(figure, tmp_path / f"b.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == figure.alt
        assert image.width == pytest.approx(figure.get_figwidth() * 300, abs=1)
    escaped = figure.alt.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    svg = (tmp_path / "a.svg").read_text()
    assert f"<title>{escaped}</title>" in svg
    assert f"<dc:description>{escaped}</dc:description>" in svg
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Subject (Relevance & <more> over 2 frames" in pdf
    assert b"/Type3" not in pdf  # publishers refuse it


def test_files_that_cannot_be_written(run: Trace, found: xr.Dataset, tmp_path: Path) -> None:
    figure = figures.over_tokens(run, found.tokens)
    with pytest.raises(VltError, match=r"png, svg, pdf, not as \.gif"):
        figures.save(figure, tmp_path / "a.gif")
    with pytest.raises(VltError, match="cannot be written"):
        figures.save(figure, tmp_path / "nowhere" / "a.png")


def test_a_notebook_shows_it_with_its_alt_text(run: Trace, found: xr.Dataset) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    figure = figures.over_tokens(run, found.tokens)
    data, told = InteractiveShell.instance().display_formatter.format(figure)
    InteractiveShell.clear_instance()
    assert data["image/png"].startswith("iVBOR")
    assert data["text/plain"] == told["image/png"]["alt"] == figure.alt
    assert told["image/png"]["width"] == 700


def test_threads_do_not_mix(run: Trace, found: xr.Dataset) -> None:
    def draw(_: int) -> bytes:
        figure = figures.over_sound(run, found.audio)
        figure.canvas.draw()
        return bytes(figure.canvas.buffer_rgba())

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(draw, range(4)))) == 1


def test_scales_and_colours() -> None:
    assert len(set(COLOURS)) == len(COLOURS) == 7
    scale = Scale.of(np.array([0.0, 3e-5]))
    assert (scale.title("heat"), scale.number(1.5e-5), scale.extend) == ("heat (10⁻⁵)", "1.5", "neither")
    assert Scale.of(np.array([0.0, 3.0]), top=2).extend == "max"
    assert Scale.of(np.array([-3.0, 3.0]), top=2).extend == "both"
    assert (scale.ink(0.0), scale.ink(3e-5)) == ("white", "black")
    assert times([0, 2.0, 4]) == ["0.0", "2.0", "4.0"]
    assert times([0, 1.75]) == ["0.00", "1.75"]
