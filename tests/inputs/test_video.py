"""Frames: the original's indices, the original's pixels, the same from both decoders."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import REFERENCE, Numbers, moving_square, real_clip
from vlt.errors import VltError
from vlt.inputs import video
from vlt.inputs.clip import Clip

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord has no wheel for this platform")
STORED = json.loads((REFERENCE / "frames.json").read_text())
VIDEOS = [name for name in STORED if not name.startswith("_")]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("n_frames", [8, 32])
def test_indices_are_the_originals(name: str, n_frames: int) -> None:
    stored = STORED[name]
    assert video.uniform_indices(stored["n_frames"], n_frames).tolist() == stored[f"n_frms={n_frames}"]["indices"]


@pytest.mark.parametrize("n_frames", [1, 7, 8, 16, 32])
def test_indices_are_left_edges(n_frames: int) -> None:
    for total in range(1, 3000, 7):
        indices = video.uniform_indices(total, n_frames)
        assert len(indices) == min(n_frames, total)
        assert indices[0] == 0
        assert indices[-1] < total
        assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize(("total", "n_frames"), [(0, 8), (8, 0), (8, -1)])
def test_no_frames_are_refused(total: int, n_frames: int) -> None:
    with pytest.raises(VltError, match="at least 1"):
        video.uniform_indices(total, n_frames)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 8, 9, 20, 1000])
@pytest.mark.parametrize("n_frames", [1, 4, 7, 8])
def test_headtail_draws_half_of_the_frames_from_each_half(total: int, n_frames: int) -> None:
    draws = [video.headtail_indices(total, n_frames, np.random.default_rng(seed)) for seed in range(50)]
    count = min(n_frames, total)
    for indices in draws:
        assert indices.dtype == np.int64
        assert len(indices) == count
        assert (np.diff(indices) > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < total
        assert (indices < total // 2).sum() == count // 2
    if total <= n_frames:
        assert draws[0].tolist() == list(range(total))
    if total == 20:
        assert {i for indices in draws for i in indices.tolist()} == set(range(0 if n_frames > 1 else 10, 20))
    assert np.array_equal(draws[7], video.headtail_indices(total, n_frames, np.random.default_rng(7)))
    with pytest.raises(VltError, match="at least 1"):
        video.headtail_indices(total, 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    "name", [name for name in VIDEOS if name in ("IronMan.mp4", "applausing.mp4", "dog_barking.mp4", "silence_girl.mp4")]
)
@pytest.mark.parametrize("reader", [pytest.param("decord", marks=needs_decord), "pyav"])
def test_pixels_are_the_originals(name: str, reader: str) -> None:
    numbers, clip = Numbers("frames"), Clip(real_clip(name))
    pixels = clip.pixels(8, 224, reader)
    raw = numbers[f"outputs.{name}.n8.raw_uint8_every_28"]
    assert np.array_equal(pixels[:, 14::28, 14::28].transpose(3, 0, 1, 2), raw.numpy())
    transformed = video.normalise(pixels)[:, :, 14::28, 14::28].permute(1, 0, 2, 3)
    torch.testing.assert_close(transformed, numbers[f"outputs.{name}.n8.transformed_every_28"], atol=1e-6, rtol=0)
    assert clip.fps == pytest.approx(STORED[name]["fps"])
    assert clip.n_frames == STORED[name]["n_frames"]


FILES = {
    "plain.mp4": {},
    "plain.mov": {},
    "plain.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9", "sound": "libopus", "rate": 48_000},
    "vp8.webm": {"codec": "libvpx", "sound": None, "seconds": 6.0},
    "odd.mp4": {"size": (97, 61), "pixels": "yuv444p"},
    "pixel.mp4": {"size": (1, 1), "pixels": "yuv444p", "sound": None},
    "one.mp4": {"frames": 1, "sound": None},
    "varied.mp4": {"frames": 12, "stamps": [0, 1, 2, 3, 4, 5, 10, 15, 16, 17, 30, 31], "sound": None},
    "keys.mp4": {"seconds": 9.0, "sound": None},
}


@needs_decord
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("n_frames", [3, 8])
def test_both_readers_give_the_same_bytes(media, name: str, n_frames: int) -> None:
    clip = Clip(media(name, **FILES[name]))
    assert np.array_equal(clip.pixels(n_frames, 224, "decord"), clip.pixels(n_frames, 224, "pyav"))


@pytest.mark.parametrize("name", FILES)
def test_jumping_to_key_frames_gives_the_same_bytes_as_reading_through(media, name: str) -> None:
    clip = Clip(media(name, **FILES[name]))
    stream = clip._stream
    assert stream is not None
    everything = video._read_pyav(clip.path, stream, list(range(clip.n_frames)), 32)
    for i in (0, clip.n_frames // 2, clip.n_frames - 1):
        assert np.array_equal(video._read_pyav(clip.path, stream, [i], 32)[0], everything[i])


def test_frames_are_the_ones_that_were_written(media) -> None:
    clip = Clip(media("big.mp4", size=(64, 64), sound=None, seconds=3.0))
    written = np.stack([moving_square(i, 64, 64) for i in range(clip.n_frames)]).astype(int)
    nearest = [int(np.abs(written - got).mean(axis=(1, 2, 3)).argmin()) for got in clip.pixels(8, 64)]
    assert nearest == clip.frame_indices(8).tolist()


def turned(source: Path, target: Path, degrees: int) -> Path:
    """The same mp4 with a display matrix, as telephones write: pictures are to be turned clockwise by so much."""
    content = bytearray(source.read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    at = content.index(b"tkhd") + 44  # after version, times, id, duration, layer, volume
    content[at : at + 36] = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_videos_are_upright_in_both_readers(media, tmp_path: Path, degrees: int) -> None:
    plain = Clip(media("flat.mp4", size=(96, 64), sound=None))
    clip = Clip(turned(plain.path, tmp_path / "turned.mp4", degrees))
    assert clip.size == ((64, 96) if degrees != 180 else (96, 64))
    upright = np.rot90(plain.pixels(8, 96, "pyav"), -degrees // 90, axes=(1, 2)).astype(int)
    other = np.rot90(plain.pixels(8, 96, "pyav"), degrees // 90 + 1, axes=(1, 2)).astype(int)
    ours = clip.pixels(8, 96, "pyav")
    assert np.abs(ours - upright).mean() < 5 < np.abs(ours - other).mean()
    if importlib.util.find_spec("decord"):
        assert np.array_equal(clip.pixels(8, 224, "pyav"), clip.pixels(8, 224, "decord"))
        assert np.array_equal(clip.pixels(8, 96), ours)  # by default PyAV everywhere


def test_open_groups_of_pictures_are_read_rightly(media) -> None:
    """decord would give other frames: it is passed over, and refused where it is asked for by name."""
    codec = {"x264-params": "open-gop=1:keyint=5:min-keyint=5:bframes=2:b-adapt=0:scenecut=0"}
    clip = Clip(media("open.mp4", size=(64, 64), sound=None, seconds=3.0, codec_options=codec))
    stream = clip._stream
    assert stream is not None
    assert stream.open_groups
    through = video._read_pyav(clip.path, stream, list(range(30)), 64)
    for i in range(30):
        assert np.array_equal(video.read_frames(clip.path, stream, [i], 64)[0], through[i])
    with pytest.raises(VltError, match="has open groups of pictures"):
        clip.pixels(reader="decord")


def test_true_times_of_a_varying_rate(media) -> None:
    clip = Clip(media("varied.mp4", **FILES["varied.mp4"]))
    assert clip.frame_times.tolist() == pytest.approx([s / 10 for s in FILES["varied.mp4"]["stamps"]])


def test_unknown_reader_and_frame(media) -> None:
    clip = Clip(media("plain.mp4"))
    with pytest.raises(VltError, match="no reader 'decorde'; nearest: decord"):
        clip.pixels(reader="decorde")
    assert clip._stream is not None
    with pytest.raises(VltError, match=r"it has frames 0\.\.19"):
        video.read_frames(clip.path, clip._stream, [20], 32)


def test_normalise_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    frames = video.normalise(pixels)
    assert frames.shape == (2, 3, 5, 7)
    assert frames[1, 2, 3, 4].item() == pytest.approx((pixels[1, 3, 4, 2] / 255 - 0.40821073) / 0.27577711, abs=1e-6)
    assert np.array_equal(video.denormalise(frames).numpy(), pixels)


@pytest.mark.parametrize("n_frames", [True, 0])  # 4.5 is refused, too; here already by the types
def test_a_number_of_frames_is_a_whole_one(n_frames: object) -> None:
    with pytest.raises(VltError, match=f"{n_frames!r} frames of a video of 10 were asked for; both must be whole numbers"):
        video.uniform_indices(10, n_frames)
