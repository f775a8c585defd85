"""What the front end shows of a run, as plain data: pictures, words, heat."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from vlt.errors import VltError, nearest
from vlt.explain.attribution import COMPARABLE, METHODS, UNSIGNED, attribute
from vlt.inputs import audio
from vlt.inputs.video import denormalise
from vlt.probe.trace import Trace

# Where each method has its heat, on what is seen and on what is heard; the rest at the pixels and at the spectrogram.
# Integrated gradients at the patches point right about as often as at the pixels, for a sixteenth of the time (`vlt truth`).
AT = {"grad_cam": ("patches", "audio_features"), "integrated_gradients": ("patches", "spectrograms")}
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".wav": "audio/wav", ".mp3": "audio/mpeg"}
PLAYED |= {".m4a": "audio/mp4", ".ogg": "audio/ogg", ".flac": "audio/flac"}
# What a browser is given of a sound picture: dB below the loudest that are still to be seen.
DEPTH = 60


def shown(run: Trace) -> dict[str, Any]:
    """What does not change while one clip is looked at: its name, its frames and its spectrogram as pictures."""
    branches = run.setting.branches
    return {
        "name": run.clip.path.name,
        "kind": run.clip.kind,
        "seconds": float(run.clip.duration),
        "frames": _frames(run) if "video" in branches else [],
        "sound": _sound(run) if "audio" in branches else None,
        "methods": list(METHODS),
        "note": run.model.config.note,
    }


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
    loud = np.clip((log - log.max()) * (10 / np.log(10)) / DEPTH + 1, 0, 1)
    grey = np.concatenate(list((255 * (1 - loud)).astype(np.uint8)), axis=1)[::-1]
    hz = value["hz"].values
    ticks = [{"place": float(np.abs(hz - f).argmin() + 0.5) / len(hz), "text": f"{f / 1000:g} kHz"} for f in (500, 2000, 5000)]
    bounds = zip(value["start"].values, value["end"].values, strict=True)
    segments = [{"start": float(a), "end": float(b)} for a, b in bounds]
    return {"image": _uri(grey, "PNG"), "segments": segments, "ticks": ticks}


def _columns(run: Trace) -> int:
    """How many columns of a spectrogram are of its segment; the rest is padding."""
    value = run["spectrograms"]
    return audio.whole_columns(float(value["end"].values[0] - value["start"].values[0]), value.sizes["time"])


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
    """An answer: its text, its tokens with their probabilities, and log p of the whole, its stop sign included."""
    logprobs = run.logprobs.values
    tokens = [{"text": t, "p": float(np.exp(p))} for t, p in zip(run.answer.tokens, logprobs, strict=True)]
    stop = run.answer.ended == "stop"  # the stop sign is scored, and not shown as a word
    return {
        "text": run.answer.text,
        "tokens": tokens[:-1] if stop and len(tokens) > 1 else tokens,
        "logp": float(logprobs.sum()),
    }


def heat(
    run: Trace, word: int | str, method: str, progress: Callable[[int, int], None] | None = None, batch: int = 16
) -> dict[str, Any]:
    """Where the run looked and listened for a word of its answer.

    frames [frame][row][column] and segments [segment][row][column]: heat summed over the ViT's patches, and over an eighth
    of the frequencies and of a segment's time; frame_bars, segment_bars: their sums; one_scale: can that on pictures be
    compared with that on sound? signed: does it tell for from against? warnings: of `Attribution`. Raises `VltError` for
    an unknown word or method.
    """
    if method not in METHODS:
        raise VltError(f"no method {method!r}; {nearest(method, METHODS)}")
    number = run.word(word)
    found: dict[str, Any] = {"method": method, "word": run.answer.tokens[number].strip(), "seconds": 0.0, "warnings": []}
    found |= {"one_scale": method in COMPARABLE, "signed": method not in UNSIGNED}
    look, listen = AT.get(method, ("frames", "spectrograms"))
    stages = [(at, f) for at, f in ((look, _on_patches), (listen, _on_sound)) if _there(run, at)]
    for i, (at, gridded) in enumerate(stages):

        def tell(done: int, total: int, part: int = i) -> None:
            if progress is not None:
                progress(part * total + done, len(stages) * total)

        at_stage = attribute(run, at, method, number, progress=tell, batch=batch)
        grid, bars = gridded(run, at_stage.heat)
        name = "frame" if gridded is _on_patches else "segment"
        found |= {f"{name}s": _rounded(grid), f"{name}_bars": _rounded(bars)}
        found["seconds"] += at_stage.seconds
        found["warnings"] += [f"{at.replace('_', ' ').capitalize()}: {warning}" for warning in at_stage.warnings]
    return found


def _there(run: Trace, stage: str) -> bool:
    branch = "video" if stage in ("frames", "patches") else "audio"
    return branch in run.setting.branches and branch in run.prompt.branches


def _on_patches(run: Trace, heat: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray]:
    rows = 1 + int(run.axes_of("patches")[1].coordinates["patch_row"].max())
    values = heat.values
    if "patch" in heat.dims:
        values = values[:, 1:].reshape(len(values), rows, -1)  # without the class token
    else:
        side = values.shape[1] // rows
        values = values.reshape(len(values), rows, side, -1, side).sum((2, 4))
    return values, values.sum((1, 2))


def _on_sound(run: Trace, heat: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray]:
    if heat.ndim == 1:
        return None, heat.values
    bins = np.add.reduceat(heat.values, np.linspace(0, heat.sizes["mel"], 8, endpoint=False).astype(int), axis=1)
    edges = np.linspace(0, _columns(run), 8, endpoint=False).astype(int)
    grid = np.add.reduceat(bins[:, :, : _columns(run)], edges, axis=2)
    return grid[:, ::-1], heat.values.sum((1, 2))  # high frequencies first, as the picture has them


def _rounded(values: np.ndarray | None) -> Any:
    """Three digits are more than a colour shows."""
    if values is None:
        return None
    top = float(np.abs(values).max()) or 1.0
    digits = 3 - int(np.floor(np.log10(top)))
    return np.round(values.astype(float), digits).tolist()
