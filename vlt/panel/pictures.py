"""What the front end shows of a run, as plain data: pictures, words, heat."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from vlt.errors import VltError, nearest
from vlt.explain.attribution import COMPARABLE, IN_NATS, METHODS, UNSIGNED, attribute
from vlt.inputs import audio
from vlt.inputs.video import denormalise
from vlt.model import box, stages
from vlt.probe.trace import Trace

PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".wav": "audio/wav", ".mp3": "audio/mpeg"}
PLAYED |= {".m4a": "audio/mp4", ".ogg": "audio/ogg", ".flac": "audio/flac"}
# What a browser is given of a sound picture: dB below the loudest that are still to be seen.
DEPTH = 60
# The share of heat at no place that is told.
MUCH = 0.05
TAKING_AWAY = ("occlusion", "ablation", "shapley_sampling", "kernel_shap")


def shown(run: Trace) -> dict[str, Any]:
    """What does not change while one clip is looked at: its name, its frames and its spectrogram as pictures."""
    branches = run.setting.branches
    return {
        "name": name_of(run.clip.path),
        "kind": run.clip.kind,
        "seconds": float(run.clip.duration),
        "frames": _frames(run) if "video" in branches else [],
        "sound": _sound(run) if "audio" in branches else None,
        "methods": list(METHODS),
        "note": run.model.config.note,
        "offset": max(0.0, -run.clip.sound.start),  # a player counts from what begins first, sound or pictures
    }


def name_of(path: Path) -> str:
    """Of a file, as text, whatever bytes it has."""
    return _text(path.name)


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def check_method(method: str) -> None:
    """Raises `VltError` unless the panel knows the method."""
    if method not in METHODS:
        raise VltError(f"no method {method!r}; {nearest(method, METHODS)}")


def refuse_stale(shown: Mapping[str, Any], view: Mapping[str, Any], clicked: Mapping[str, Any]) -> None:
    """Raises `VltError` where the clip or the answer that somebody clicked is not there any more: the numbers of its frames
    and words mean something else now. clicked: `clip`, its path, `answer`, its text, `edited`, whether it is the second;
    what is not told is not looked at."""
    answer = view["edited" if clicked.get("edited") else "answer"]
    if clicked.get("clip") not in (None, shown["origin"]["path"]) or (
        clicked.get("answer") not in (None, answer and answer["text"])
    ):
        raise VltError("what was clicked is not there any more; click what is to be seen now")


def origin(run: Trace) -> dict[str, str]:
    """What the run is of: the clip's whole path, the model's name (or its folder; "" if it has none), vlt's version."""
    try:
        version = metadata.version("vlt")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        version = ""
    return {"path": _text(str(run.clip.path.absolute())), "model": run.model.name_or_path or "", "vlt": version}


def _frames(run: Trace) -> list[dict[str, Any]]:
    frames = run["frames"]
    pictures = denormalise(run.stage("frames")[0]).cpu().numpy()
    return [
        {"image": _uri(picture, "JPEG", quality=92), "seconds": float(seconds), "number": i}
        for i, (picture, seconds) in enumerate(zip(pictures, frames["seconds"].values, strict=True))
    ]


def _sound(run: Trace) -> dict[str, Any]:
    """One picture of all segments beside each other, low frequencies below; loud is dark. Columns of padding are left out."""
    value = run["spectrograms"]
    log = value.values[:, 0] * audio.LOG_MEL_STD + audio.LOG_MEL_MEAN
    log = log[:, :, : _columns(run)]
    decibels = (log - max(log.max(), np.log(audio.MEL_FLOOR) + DEPTH / 10 * np.log(10))) * (10 / np.log(10))  # silence is pale
    loud = np.clip(decibels / DEPTH + 1, 0, 1)
    grey = np.concatenate(list((255 * (1 - loud)).astype(np.uint8)), axis=1)[::-1]
    hz = value["hz"].values
    ticks = [{"place": float(np.abs(hz - f).argmin() + 0.5) / len(hz), "text": f"{f / 1000:g} kHz"} for f in (500, 2000, 5000)]
    bounds = zip(value["start"].values, value["end"].values, strict=True)
    segments = [{"start": float(a), "end": float(min(b, a + run.clip.sound.duration))} for a, b in bounds]
    return {"image": _uri(grey, "PNG"), "segments": segments, "ticks": ticks}


def _columns(run: Trace) -> int:
    """How many columns of a spectrogram are of its segment, or of a sound that is shorter; the rest is padding."""
    value = run["spectrograms"]
    length = min(float(value["end"].values[0] - value["start"].values[0]), run.clip.sound.duration)
    return max(1, audio.whole_columns(length, value.sizes["time"]))


def _uri(pixels: np.ndarray, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def media(path: Path, limit: int) -> tuple[bytes, str]:
    """The file for the browser's own player, and its type; nothing where a browser plays no such files, or above `limit`
    bytes."""
    kind = PLAYED.get(path.suffix.lower(), "")
    if not kind or path.stat().st_size > limit:
        return b"", ""
    return path.read_bytes(), kind


def said(run: Trace) -> dict[str, Any]:
    """An answer: its text, its tokens with their probabilities, whether it was cut off, log p of the whole, its stop sign
    included (of one that was cut off there is none), and what the model is known not to know."""
    logprobs = run.logprobs.values
    tokens = [{"text": t, "p": float(np.exp(p))} for t, p in zip(run.answer.tokens, logprobs, strict=True)]
    stop = run.answer.ended == "stop"  # the stop sign is scored, and not shown as a word
    return {
        "text": run.answer.text,
        "tokens": tokens[:-1] if stop and len(tokens) > 1 else tokens,
        "logp": float(logprobs.sum()),
        "cut": not stop,
        "note": box.limits(run.model.name_or_path or "", run.clip.path, run.question),
    }


def heat(
    run: Trace, word: int | str, method: str, progress: Callable[[int, int], None] | None = None, batch: int = 16
) -> dict[str, Any]:
    """Where the run looked and listened for a word of its answer.

    frames [frame][row][column] and segments [segment][row][column]: heat summed over the ViT's patches, and over an eighth
    of the frequencies and of a segment's time; frame_bars, segment_bars: all of a frame's or segment's, also what is at no
    place (of the ViT's class token, of padding: a warning tells, where that is much); unit: of both; one_scale: can that on
    pictures be compared with that on sound? signed: does it tell for from against? little: which of "frames" and
    "segments" bring next to nothing; warnings: of `Attribution`. Raises `VltError` for an unknown word or method.
    """
    check_method(method)
    number = run.word(word)
    found: dict[str, Any] = {"method": method, "word": run.answer.tokens[number].strip(), "seconds": 0.0, "warnings": []}
    found |= {"unit": _unit(method), "little": []}
    found |= {"one_scale": method in COMPARABLE, "signed": method not in UNSIGNED}
    ways = [(at, options) for at, options in _ways(run, method) if _there(run, at)]
    for i, (at, options) in enumerate(ways):

        def tell(done: int, total: int, part: int = i) -> None:
            if progress is not None:
                progress(part * total + done, len(ways) * total)

        at_stage = attribute(run, at, method, number, progress=tell, batch=batch, **options)
        seen = stages.branch(at) == "video"
        name, nowhere = ("frame", "the class tokens") if seen else ("segment", "padding behind the sound's end")
        grid, bars = (_on_patches if seen else _on_sound)(run, at_stage.heat)
        found |= {f"{name}s": _rounded(grid), f"{name}_bars": _rounded(bars)}
        found["little"] += [f"{name}s"] if at_stage.little else []
        found["seconds"] += at_stage.seconds
        warnings = list(at_stage.warnings)
        if grid is not None and abs(off := float(bars.sum() - grid.sum())) > MUCH * float(np.abs(grid).sum()):
            warnings.append(f"{off:.2g} of the heat is at no place: on {nowhere}. It counts in sums, and has no colour.")
        found["warnings"] += [f"{at.replace('_', ' ').capitalize()}: {warning}" for warning in warnings]
    return found


def _ways(run: Trace, method: str) -> list[tuple[str, dict[str, Any]]]:
    """Where a method has its heat, on what is seen and on what is heard, and its options: as in `vlt truth`, of what it
    measures, with integrated gradients at the patches, where they point right about as often as at the pixels, for a
    sixteenth of the time."""
    if method == "grad_cam":
        return [("patches", {}), ("audio_features", {})]
    if method == "integrated_gradients":
        return [("patches", {}), ("spectrograms", {})]
    if method not in TAKING_AWAY:
        return [("frames", {}), ("spectrograms", {})]
    side = run.model.config.vision_config.image_size
    squares = {"height": side // 4, "width": side // 4}
    look: dict[str, Any] = {"cells": squares}
    if method in ("shapley_sampling", "kernel_shap"):  # through all frames: each apart would take minutes
        look = {"cells": {"frame": 10_000, **squares}} | ({"n_samples": 10} if method == "shapley_sampling" else {})
    return [("frames", look), ("spectrograms", {"cells": {"mel": 10_000, "time": 10_000}})]  # whole segments


def _unit(method: str) -> str:
    if method in IN_NATS:
        return "nats of log p"
    return "shares of attention" if method in ("attention", "rollout") else "a unit of its own"


def _there(run: Trace, stage: str) -> bool:
    branch = stages.branch(stage)
    return branch in run.setting.branches and branch in run.prompt.branches


def _on_patches(run: Trace, heat: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray]:
    rows = 1 + int(run.axes_of("patches")[1].coordinates["patch_row"].max())
    values = heat.values
    if "patch" in heat.dims:
        return values[:, 1:].reshape(len(values), rows, -1), values.sum(1)  # the class token is first
    side = values.shape[1] // rows
    values = values.reshape(len(values), rows, side, -1, side).sum((2, 4))
    return values, values.sum((1, 2))


def _on_sound(run: Trace, heat: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray]:
    if heat.ndim == 1:
        return None, heat.values
    bins = np.add.reduceat(heat.values, np.linspace(0, heat.sizes["mel"], 8, endpoint=False).astype(int), axis=1)
    edges = np.linspace(0, _columns(run), min(8, _columns(run)), endpoint=False).astype(int)
    grid = np.add.reduceat(bins[:, :, : _columns(run)], edges, axis=2)
    return grid[:, ::-1], heat.values.sum((1, 2))  # high frequencies first, as the picture has them


def _rounded(values: np.ndarray | None) -> Any:
    """Three digits are more than a colour shows."""
    if values is None:
        return None
    top = float(np.abs(values).max()) or 1.0
    digits = 3 - int(np.floor(np.log10(top)))
    return np.round(values.astype(float), digits).tolist()
