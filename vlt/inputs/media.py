"""Opening a stranger's media file: which kinds are read, how far they are trusted, and what each stream holds."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import av.logging
import numpy as np

from vlt.errors import VltError

KINDS = "mp4, mov, webm, mkv, gif, png, jpg, wav, mp3, flac"

# ffmpeg follows links: a text file named .mp4 may be a playlist that names other files or addresses. Only these
# containers are opened, and only from the local disk.
_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif", "wav", "mp3", "flac")
_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}

# Containers that can jump to a key frame, and that state how long they are when they are whole.
INDEXED = _FORMATS[:2]

MAX_PIXELS = 64_000_000  # per frame: a picture of 8000 x 8000 still passes, a decompression bomb does not
_SLACK = 0.1  # seconds, beside one frame, that a whole file may end before the length that its header states

# PyAV's own log handler takes Python's lock inside the decoder's threads and can wait for it for ever while a container
# is being closed. ffmpeg's plain handler does not; it stays silent: what goes wrong is raised by us, once, in words.
av.logging.restore_default_callback()
av.logging.set_libav_level(av.logging.PANIC)


@dataclasses.dataclass(frozen=True)
class VideoStream:
    """What the packets of a video stream say, without decoding one.

    times: start of every frame in seconds, in the order shown [frame] float64.
    stamps: the same in units of `time_base`, as the decoder reports them [frame] int64.
    keys: stamps of the frames at which decoding can start [key frame] int64.
    fps: average frame rate in frames per second. width, height: in pixels, as shown, that is after turning.
    turned: degrees, of 0, 90, 180, 270, by which pictures are to be turned anti-clockwise to be upright.
    open_groups: frames that are shown before a key frame come after it in the file.
    """

    index: int
    format: str
    width: int
    height: int
    turned: int
    fps: float
    time_base: Fraction
    stamps: np.ndarray
    keys: np.ndarray
    open_groups: bool

    @property
    def start(self) -> float:
        """When the first frame is shown, in seconds on the file's own clock."""
        return float(self.stamps[0] * self.time_base)

    @property
    def times(self) -> np.ndarray:
        return (self.stamps - self.stamps[0]) * float(self.time_base)


@contextmanager
def open_media(path: Path) -> Iterator[av.container.InputContainer]:
    """A media file, opened for reading; whatever the decoder dislikes becomes a `VltError` that names the file."""
    try:
        # the whole path: ffmpeg would take "10:30.mp4" for an address
        with av.open(str(path.resolve()), options=dict(_OPTIONS), metadata_errors="replace") as container:
            yield container
    except (av.error.FFmpegError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise VltError(
            f"{path}: cannot be read as {KINDS} ({detail}): it is damaged, or of another kind (ffmpeg turns most into mp4)"
        ) from error


def check_file(path: Path) -> None:
    """Raises `VltError` where `path` is not a file with something in it."""
    try:
        status = path.stat()
    except (FileNotFoundError, ValueError) as error:  # the latter: no file has a null byte in its name
        raise VltError(f"{str(path)!r}: no such file" if "\0" in str(path) else f"{path}: no such file") from error
    except OSError as error:
        raise VltError(f"{path}: cannot be opened ({error.strerror})") from error
    if stat.S_ISDIR(status.st_mode):
        raise VltError(f"{path}: is a directory; give one file ({KINDS})")
    if not stat.S_ISREG(status.st_mode):
        raise VltError(f"{path}: is not a regular file; give one file ({KINDS})")
    if status.st_size == 0:
        raise VltError(f"{path}: is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise VltError(f"{path}: may not be read by this user")


def _check_index(path: Path) -> None:
    """An mp4's table of samples is built in memory before one is read; it cannot rightly name more samples than the
    file has bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(12)[4:8] not in (b"ftyp", b"moov", b"free", b"wide", b"mdat", b"skip"):
            return
        for start in _sample_tables(file, 0, size):
            file.seek(start + 8)
            count = int.from_bytes(file.read(4), "big")
            if count > size:
                raise VltError(f"{path}: is damaged (its index promises {count} samples in {size} bytes)")


# The boxes on the way to a table of samples (stsz), each inside the one before.
_WAY = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def _sample_tables(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[int]:
    """Where the contents of each table of samples begin."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        last = end if length == 0 else start + length
        if length and length < header:
            return
        if depth < len(_WAY) and kind == _WAY[depth]:
            yield from _sample_tables(file, start + header, min(last, end), depth + 1)
        elif kind == b"stsz":
            yield start + header
        start = last


def is_picture(path: Path) -> bool:
    """True for PNG and JPEG files, by their first bytes: a name proves nothing."""
    with path.open("rb") as file:
        head = file.read(8)
    return head.startswith(b"\x89PNG\r\n\x1a\n") or head.startswith(b"\xff\xd8\xff")


def scan(path: Path) -> tuple[VideoStream | None, bool]:
    """The file's first moving-picture stream, if any, and whether it has a sound stream.

    Reads every packet: the headers of some files state no frame count, and a header that states one does not prove
    that the file is whole. A file that ends early is refused (an mp3 cannot tell). Decodes one frame, to see how the
    pictures are turned.
    """
    _check_index(path)
    with open_media(path) as container:
        stream = next((s for s in container.streams.video if not _is_cover(s)), None)
        stamps: list[int] = []
        keys: list[int] = []
        counts: dict[int, int] = {}
        last, open_groups = 0.0, False
        for packet in container.demux():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or stamp is None:
                continue
            if packet.is_corrupt:
                raise VltError(f"{path}: is damaged or cut off (a broken packet at {float(stamp * packet.time_base):.2f} s)")
            counts[packet.stream.index] = counts.get(packet.stream.index, 0) + 1
            last = max(last, float((stamp + (packet.duration or 0)) * packet.time_base))
            if stream is not None and packet.stream.index == stream.index and not packet.is_discard:
                open_groups |= bool(keys) and stamp < keys[-1]
                stamps.append(stamp)
                if packet.is_keyframe:
                    keys.append(stamp)
        _check_whole(
            path, container, counts, last, _SLACK + (float(1 / stream.average_rate) if stream and stream.average_rate else 0)
        )
        if stream is None or not stamps:
            return None, bool(container.streams.audio)
        if stream.width * stream.height > MAX_PIXELS:
            raise VltError(f"{path}: frames of {stream.width} x {stream.height} pixels; at most {MAX_PIXELS} pixels are read")
        order = np.array(sorted(stamps), dtype=np.int64)
        turned = _turned(path, stream.index)
        size = (stream.width, stream.height)[:: -1 if turned in (90, 270) else 1]
        return VideoStream(
            index=stream.index,
            format=container.format.name,
            width=size[0],
            height=size[1],
            turned=turned,
            fps=_frame_rate(stream, order),
            time_base=stream.time_base or Fraction(1),
            stamps=order,
            keys=np.array(sorted(keys), dtype=np.int64),
            open_groups=open_groups,
        ), bool(container.streams.audio)


def _turned(path: Path, index: int) -> int:
    """How far a telephone was turned: it is written beside the pictures, and decord obeys it."""
    with open_media(path) as container:
        frame = next(container.decode(container.streams[index]), None)
        return 0 if not isinstance(frame, av.VideoFrame) else round(frame.rotation / 90) % 4 * 90


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _frame_rate(stream: av.VideoStream, stamps: np.ndarray) -> float:
    if stream.average_rate:
        return float(stream.average_rate)
    if len(stamps) > 1:
        return (len(stamps) - 1) / float((stamps[-1] - stamps[0]) * stream.time_base)
    return 1.0


def _check_whole(path: Path, container: av.container.InputContainer, counts: dict[int, int], last: float, slack: float) -> None:
    for stream in container.streams:
        found = counts.get(stream.index, 0)
        if stream.type in ("video", "audio") and found < stream.frames:
            raise VltError(
                f"{path}: is cut off ({stream.type}: {found} of the {stream.frames} packets that its header promises)"
            )
    stated = (container.duration or 0) / 1e6
    if container.format.name in INDEXED and last + slack < stated:
        raise VltError(f"{path}: is cut off (ends at {last:.2f} s; its header promises {stated:.2f} s)")
    if container.format.name == "gif":
        with path.open("rb") as file:
            file.seek(-min(16, path.stat().st_size), os.SEEK_END)
            if b";" not in file.read():  # some writers pad the end
                raise VltError(f"{path}: is cut off (a GIF ends with its trailer byte)")
