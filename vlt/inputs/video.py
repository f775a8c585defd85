"""Frames: which ones are looked at, and their pixels as the image encoder wants them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.inputs import media

# Constants of the original (conversation_video.py, processors/video_processor.py).
N_FRAMES = 8  # frames per video, in training and in use
IMAGE_SIZE = 224  # pixels, height and width; the aspect ratio is not kept
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue, of pixels in 0..1 (CLIP's)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

READERS = ("decord", "pyav")


def _check_count(n_frames: int, n_total: int) -> None:
    whole = isinstance(n_frames, int | np.integer) and not isinstance(n_frames, bool)
    if not whole or n_frames < 1 or n_total < 1:
        raise VltError(f"{n_frames!r} frames of a video of {n_total} were asked for; both must be whole numbers, at least 1")


def uniform_indices(n_total: int, n_frames: int = N_FRAMES) -> np.ndarray:
    """The left edges of `n_frames` equal parts of a video: [frame] int64, in 0..n_total-1.

    The first is always frame 0 and the last never the final frame. A video of fewer frames gives all it has.
    Source: the original's `load_video`, sampling "uniform".
    """
    _check_count(n_frames, n_total)
    n_frames = min(n_frames, n_total)
    return (np.arange(n_frames) * (n_total / n_frames)).astype(np.int64)


def headtail_indices(n_total: int, n_frames: int, draw: np.random.Generator) -> np.ndarray:
    """Frames drawn at random, half of them from each half of a video, in order: [frame] int64, in 0..n_total-1.

    Of an odd number, the second half gives one more (the original gives one too few). A video of fewer frames gives
    all it has. Source: the original's `load_video`, sampling "headtail".
    """
    _check_count(n_frames, n_total)
    n_frames = min(n_frames, n_total)
    middle, n_head = n_total // 2, n_frames // 2
    head = draw.choice(middle, n_head, replace=False) if n_head else np.zeros(0, dtype=np.int64)
    tail = middle + draw.choice(n_total - middle, n_frames - n_head, replace=False)
    return np.sort(np.concatenate([head, tail])).astype(np.int64)


def normalise(pixels: UInt8[np.ndarray, "frame height width 3"]) -> Float[Tensor, "frame 3 height width"]:
    """Bytes 0..255 -> float32 channels first, CLIP's mean and deviation taken out."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD).view(3, 1, 1)
    return (scaled - mean) / std


def denormalise(frames: Float[Tensor, "*batch 3 height width"]) -> UInt8[Tensor, "*batch height width 3"]:
    """The inverse of `normalise`, for drawing: float -> bytes 0..255, channels last."""
    mean = torch.tensor(PIXEL_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=frames.device).view(3, 1, 1)
    pixels = ((frames.float() * std + mean) * 255).round().clamp(0, 255)
    return pixels.to(torch.uint8).movedim(-3, -1)


def read_picture(path: Path, size: int) -> UInt8[np.ndarray, "1 size size 3"]:
    """A still as one frame, resized bicubically (the original's image processor)."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > media.MAX_PIXELS:
                raise VltError(f"{path}: {image.width} x {image.height} pixels; at most {media.MAX_PIXELS} are read")
            resized = _eight_bit(image).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            return np.asarray(resized)[None].copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VltError(f"{path}: cannot be read as a PNG or JPEG picture ({error}); is it whole?") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which PIL would clip to white, as grey of 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels. Decodes the whole picture, so that a damaged one is refused at once."""
    read_picture(path, 1)
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        return image.size


def read_frames(
    path: Path, stream: media.VideoStream, indices: Sequence[int] | np.ndarray, size: int, reader: str | None = None
) -> UInt8[np.ndarray, "frame size size 3"]:
    """The frames of these indices, resized while decoding; only these are kept in memory.

    reader: "decord" or "pyav"; both give the same bytes. By default decord where it is installed and knows the
    container, else PyAV.
    """
    if reader is not None and reader not in READERS:
        raise VltError(f"no reader {reader!r}; {nearest(reader, READERS)}")
    if len(indices) == 0 or min(indices) < 0 or max(indices) >= len(stream.stamps):
        raise VltError(f"{path}: frames {list(indices)} were asked for; it has frames 0..{len(stream.stamps) - 1}")
    if reader is None:
        # decord's own turning differs from ours where one side needs no scaling: then the platform would decide
        known = stream.format in media.INDEXED and not stream.open_groups and not stream.turned
        reader = "decord" if known and importlib.util.find_spec("decord") is not None else "pyav"
    elif reader == "decord" and stream.open_groups:
        raise VltError(f"{path}: has open groups of pictures, of which decord gives other frames than asked for; use 'pyav'")
    frames = _read_decord(path, stream, indices, size) if reader == "decord" else None
    return _read_pyav(path, stream, indices, size) if frames is None else frames


def _read_decord(path: Path, stream: media.VideoStream, indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray | None:
    """None where decord's (older) ffmpeg counts other frames than ours: then its indices mean something else."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(str(path.resolve()), width=size, height=size, num_threads=1)
        if len(video) != len(stream.stamps):
            return None
        return video.get_batch([int(i) for i in indices]).asnumpy()
    except (decord.DECORDError, UnicodeEncodeError):  # the latter: a file name that is not UTF-8
        return None


def _read_pyav(path: Path, stream: media.VideoStream, indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    wanted = stream.stamps[np.asarray(indices)]
    found: dict[int, np.ndarray] = {}
    with media.open_media(path) as container:
        resize = _Resize(size, stream.turned)
        for stamp, frame in _decode(container, stream, sorted(set(wanted.tolist()))):
            found[stamp] = resize(frame)
    if missing := [int(i) for i, stamp in zip(indices, wanted, strict=True) if stamp not in found]:
        raise VltError(f"{path}: frames {missing} cannot be decoded; is the file damaged?")
    return np.stack([found[stamp] for stamp in wanted.tolist()])


def _decode(
    container: av.container.InputContainer, stream: media.VideoStream, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(stamp asked for, frame) in order; jumps to the key frame before the next one where that skips work."""
    source: Any = container.streams[stream.index]
    source.thread_type = "AUTO"
    waiting, frames, at = list(wanted), container.decode(source), int(stream.stamps[0])
    while waiting:
        before = stream.keys[stream.keys <= waiting[0]]
        if stream.format in media.INDEXED and len(before) and before[-1] > at:
            container.seek(int(before[-1]), stream=source)
            frames = container.decode(source)
        for frame in frames:
            at = frame.pts if frame.pts is not None else frame.dts or 0
            if at >= waiting[0]:
                yield waiting.pop(0), frame
                break
        else:
            return


class _Resize:
    """swscale's bilinear filter inside a filter graph: the same bytes as decord's own resize (max difference 0)."""

    def __init__(self, size: int, turned: int) -> None:
        self.size = size
        self.turned = turned
        self.graph: av.filter.Graph | None = None
        self.shape: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        shape = (frame.width, frame.height, frame.format.name)
        if self.graph is None or shape != self.shape:  # a stream may change its size half-way
            self.graph, self.shape = self._build(frame), shape
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        turns = {0: [], 90: ["cclock"], 180: ["clock", "clock"], 270: ["clock"]}[self.turned]
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
            *(graph.add("transpose", turn) for turn in turns),
            graph.add("scale", f"w={self.size}:h={self.size}:flags=bilinear"),
            graph.add("format", "pix_fmts=rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph
