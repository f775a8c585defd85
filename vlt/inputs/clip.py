"""A clip: one file, what it holds, and its frames and sound as the model wants them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from vlt.errors import VltError
from vlt.inputs import audio, media, video


class Clip:
    """A video, a still or a sound, opened by what it contains and not by its name.

    Opening reads the file's packets and decodes at most one frame; frames and spectrograms are decoded when they are
    asked for, and only those asked for are kept in memory. The sound is decoded once, and not kept, when `sound` is
    first read.

    path: the file. kind: "video", "image" (a clip of one frame) or "sound".
    size: (width, height) in pixels, or None. fps: average frames per second, or None.
    frame_times: start of every frame in seconds [frame] float64. Exact also where the frame rate varies.
    n_frames: how many frames it holds. duration: seconds. sound: see `vlt.inputs.audio.Sound`.

    Raises `VltError`, in one line that names the file, where it cannot be read or is cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise VltError(f"a clip is opened by the path of its file, not by {path!r}")
        self.path = Path(path)
        media.check_file(self.path)
        self._stream: media.VideoStream | None = None
        self._has_sound = False
        if media.is_picture(self.path):
            self.kind = "image"
            self.size: tuple[int, int] | None = video.picture_size(self.path)
            self.fps: float | None = None
            self.frame_times = np.zeros(1)
            return
        self._stream, self._has_sound = media.scan(self.path)
        stream = self._stream
        if stream is None and not self._has_sound:
            raise VltError(f"{self.path}: holds no frame and no sound")
        self.kind = "sound" if stream is None else "video"
        self.size = None if stream is None else (stream.width, stream.height)
        self.fps = None if stream is None else stream.fps
        self.frame_times = np.zeros(0) if stream is None else stream.times
        if stream is None and self.sound.state == "unreadable":
            raise VltError(f"{self.path}: its sound cannot be used: {self.sound.problem}")

    @property
    def n_frames(self) -> int:
        return len(self.frame_times)

    @cached_property
    def sound(self) -> audio.Sound:
        found = audio.scan_sound(self.path) if self._has_sound else audio.Sound("absent")
        return found if self._stream is None else dataclasses.replace(found, start=found.start - self._stream.start)

    @property
    def duration(self) -> float:
        """Seconds from the first frame (or sample) to the end of the last; 0 for a still."""
        if self._stream is None:
            return self.sound.duration
        gap = float(np.median(np.diff(self.frame_times))) if self.n_frames > 1 else 1 / self._stream.fps
        return float(self.frame_times[-1] + gap)

    @property
    def branches(self) -> tuple[str, ...]:
        """What there is to be seen and heard: of ("video", "audio")."""
        return ("video",) * (self.n_frames > 0) + ("audio",) * (self.sound.state == "there")

    def frame_indices(self, n_frames: int = video.N_FRAMES) -> np.ndarray:
        """Which frames are looked at: [frame] int64 (see `uniform_indices`)."""
        if self.n_frames == 0:
            raise VltError(f"{self.path}: holds sound only; it has no frames")
        return video.uniform_indices(self.n_frames, n_frames)

    def pixels(
        self,
        n_frames: int = video.N_FRAMES,
        size: int = video.IMAGE_SIZE,
        reader: str | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> UInt8[np.ndarray, "frame size size 3"]:
        """The sampled frames as bytes, resized; `reader` as in `read_frames`. indices: these
        frames instead of `n_frames` sampled ones."""
        sampled = self.frame_indices(n_frames)  # also where indices are given: sound only is refused
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4096:
            raise VltError(f"{self.path}: frames of {size!r} pixels were asked for; expected 1 to 4096")
        indices = sampled if indices is None else np.asarray(indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise VltError(f"{self.path}: frames are asked for by a list of whole numbers, not by {indices.tolist()!r}")
        if self._stream is None:
            if [int(i) for i in indices] != [0]:
                raise VltError(f"{self.path}: frames {indices.tolist()} were asked for; a still has frame 0 only")
            return video.read_picture(self.path, size)
        return video.read_frames(self.path, self._stream, indices, size, reader)

    def frames(
        self,
        n_frames: int = video.N_FRAMES,
        size: int = video.IMAGE_SIZE,
        reader: str | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> Float[Tensor, "frame 3 size size"]:
        """The sampled frames, resized and normalised, float32: the stage `frames` of one clip. Arguments as in `pixels`."""
        return video.normalise(self.pixels(n_frames, size, reader, indices))

    def segments(self, n_segments: int = audio.N_SEGMENTS, coverage: str = "original") -> list[tuple[Fraction, Fraction]]:
        """Start and end in seconds of the segments of sound that are listened to, from the start of the sound."""
        self._check_sound()
        return audio.segment_bounds(self.sound.duration, n_segments, coverage)

    def spectrograms(
        self, n_segments: int = audio.N_SEGMENTS, coverage: str = "original", n_times: int = audio.N_TIMES
    ) -> Float[Tensor, "segment 1 mel time"]:
        """Normalised log-mel spectrograms of the segments, float32: the stage `spectrograms` of one clip."""
        bounds = self.segments(n_segments, coverage)
        return audio.spectrograms_of_file(self.path, self.sound, bounds, n_times)

    def _check_sound(self) -> None:
        if self.sound.state == "absent":
            raise VltError(f"{self.path}: has no sound")
        if self.sound.state == "unreadable":
            raise VltError(f"{self.path}: its sound cannot be used: {self.sound.problem}")

    def describe(self) -> dict[str, object]:
        """What the clip holds, in words and numbers that JSON can carry."""
        sound: dict[str, object] = {"state": self.sound.state}
        if self.sound.state == "there":
            sound |= {"seconds": round(self.sound.duration, 3), "rate": self.sound.rate, "channels": self.sound.channels}
        if self.sound.problem:
            sound["problem"] = self.sound.problem
        return {
            "path": os.fsencode(self.path).decode("utf-8", "replace"),
            "kind": self.kind,
            "seconds": round(self.duration, 3),
            "frames": self.n_frames,
            "fps": None if self.fps is None else round(self.fps, 3),
            "size": None if self.size is None else list(self.size),
            "sound": sound,
        }

    def __repr__(self) -> str:
        seen = f"{self.n_frames} frames of {self.size[0]} x {self.size[1]}" if self.size else "no frames"
        return f"Clip({str(self.path)!r}: {self.kind}, {self.duration:.2f} s, {seen}, sound {self.sound.state})"
