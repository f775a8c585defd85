"""Clips: what a file holds, and the files that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import close
from vlt.errors import VltError
from vlt.inputs.clip import Clip

VIDEOS = {
    "a.mp4": {},
    "a.mov": {},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9", "sound": "libopus", "rate": 48_000},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(media, name: str) -> None:
    clip = Clip(media(name, **VIDEOS[name]))
    assert (clip.kind, clip.n_frames, clip.size) == ("video", 20, (96, 64))
    assert clip.fps == pytest.approx(10, rel=0.02)
    assert clip.duration == pytest.approx(2.0, abs=0.02)
    assert clip.frame_times.tolist() == pytest.approx([i / 10 for i in range(20)], abs=0.002)
    assert clip.sound.state == "there"
    assert clip.sound.duration == pytest.approx(2.0, abs=0.1)
    assert clip.branches == ("video", "audio")
    assert clip.frames(8, 32).shape == (8, 3, 32, 32)
    assert clip.spectrograms().shape == (8, 1, 128, 204)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac"])
def test_sounds(media, name: str) -> None:
    codec = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame", "a.flac": "flac"}[name]
    clip = Clip(media(name, size=None, sound=codec))
    assert (clip.kind, clip.n_frames, clip.size, clip.fps) == ("sound", 0, None, None)
    assert clip.branches == ("audio",)
    assert clip.duration == pytest.approx(2.0, abs=0.1)
    with pytest.raises(VltError, match="holds sound only; it has no frames"):
        clip.frames()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_still_is_a_clip_of_one_frame(tmp_path: Path, name: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / name)
    clip = Clip(tmp_path / name)
    assert (clip.kind, clip.n_frames, clip.size, clip.sound.state) == ("image", 1, (47, 31), "absent")
    assert clip.branches == ("video",)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB").resize((20, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(clip.pixels(8, 20)[0], expected)
    with pytest.raises(VltError, match="has no sound"):
        clip.spectrograms()


def test_frames_that_are_asked_for_by_index(tmp_path: Path, media) -> None:
    clip = Clip(media("a.mp4"))
    everything = clip.pixels(20, 32)
    assert np.array_equal(clip.pixels(size=32, indices=[3, 17]), everything[[3, 17]])
    close(clip.frames(size=32, indices=np.array([3, 17])), clip.frames(20, 32)[[3, 17]], 0)
    with pytest.raises(VltError, match=r"it has frames 0\.\.19"):
        clip.pixels(indices=[20])
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    still = Clip(tmp_path / "a.png")
    assert still.pixels(size=4, indices=[0]).shape == (1, 4, 4, 3)
    with pytest.raises(VltError, match=r"frames \[0, 1\] were asked for; a still has frame 0 only"):
        still.frames(indices=[0, 1])
    with pytest.raises(VltError, match=r"by a list of whole numbers, not by \[1\.5\]"):
        clip.frames(indices=np.array([1.5]))
    with pytest.raises(VltError, match="holds sound only"):
        Clip(media("a.wav", size=None, sound="pcm_s16le")).frames(indices=[0])


def test_gif(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((20, 30, 3), i * 40, dtype=np.uint8)) for i in range(5)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=200)
    clip = Clip(tmp_path / "a.gif")
    assert (clip.kind, clip.n_frames, clip.size, clip.sound.state) == ("video", 5, (30, 20), "absent")
    assert [int(frame.mean()) for frame in clip.pixels(5, 16)] == pytest.approx([0, 40, 80, 120, 160], abs=3)


def test_a_gif_that_is_cut_off(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((20, 30, 3), i * 40, dtype=np.uint8)) for i in range(5)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=200)
    whole = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(VltError, match="cut off"):
        Clip(tmp_path / "a.gif")


def test_a_file_is_what_it_contains_not_what_it_is_called(tmp_path: Path, media) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    assert Clip(tmp_path / "b.mp4").kind == "image"
    (tmp_path / "c.png").write_bytes(media("a.mp4").read_bytes())
    assert Clip(tmp_path / "c.png").kind == "video"


def test_a_silent_video_says_so(media) -> None:
    clip = Clip(media("silent.mp4", sound=None))
    assert clip.sound.state == "absent"
    assert clip.branches == ("video",)


def test_too_short_a_sound_is_unreadable_and_says_why(media) -> None:
    clip = Clip(media("blip.mkv", sound="pcm_s16le", seconds=2.0))
    assert clip.sound.state == "there"
    with pytest.raises(VltError, match=r"0\.010 s of sound is shorter than one spectrogram window"):
        Clip(media("blip.wav", size=None, sound="pcm_s16le", seconds=0.01))


def test_a_tenth_of_a_second_of_sound_is_heard(media) -> None:
    clip = Clip(media("tenth.wav", size=None, sound="pcm_s16le", seconds=0.1))
    spectrograms = clip.spectrograms()
    close(spectrograms[0], spectrograms[7], 1e-3)  # the mean is taken out eight times over
    assert spectrograms[0, 0, :, 8:].unique().tolist() == pytest.approx([0.46706], abs=1e-5)  # eight columns, then padding


def damaged_sound(source: Path, target: Path) -> None:
    """The same file with noise in place of its packets of sound: the pictures are whole."""
    import av

    content = source.read_bytes()
    with av.open(str(source)) as container:
        for packet in container.demux(audio=0):
            if packet.size > 20:
                noise = np.random.default_rng(abs(packet.dts)).bytes(packet.size)
                content = content.replace(bytes(packet), noise)
    target.write_bytes(content)


def test_unreadable_sound_is_not_absent_sound(media, tmp_path: Path) -> None:
    damaged_sound(media("a.mkv"), tmp_path / "noise.mkv")
    clip = Clip(tmp_path / "noise.mkv")
    assert clip.sound.state == "unreadable"
    assert clip.sound.problem
    assert clip.branches == ("video",)
    assert clip.frames(8, 32).shape[0] == 8
    with pytest.raises(VltError, match="its sound cannot be used"):
        clip.spectrograms()


BAD = {
    "missing.mp4": (None, "no such file"),
    "empty.mp4": (b"", r"is empty \(0 bytes\)"),
    "text.mp4": (b"just some words\n", "cannot be read as mp4"),
    "half.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read as a PNG or JPEG picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VltError, match=message) as error:
        Clip(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(VltError, match="is a directory"):
        Clip(tmp_path)


def test_no_path() -> None:
    with pytest.raises(VltError, match="opened by the path of its file"):
        Clip("")


def test_a_container_that_is_not_on_the_list(media) -> None:
    """ffmpeg could read it; what is read is a short list on purpose."""
    with pytest.raises(VltError, match="cannot be read as mp4"):
        Clip(media("a.avi", codec="mpeg4", sound=None))


def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VltError, match="is not a regular file"):
        Clip(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["slow.mp4", "slow.mkv", "slow.webm"])
def test_a_slow_video_is_not_taken_for_a_truncated_one(media, name: str) -> None:
    codec = {"codec": "libvpx-vp9"} if name.endswith("webm") else {}
    assert Clip(media(name, fps=1, seconds=5.0, sound=None, **codec)).n_frames == 5


@pytest.mark.parametrize("name", ["a.mp4", "front.mp4", "a.mov", "a.mkv", "a.webm"])
@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_truncated_videos(media, tmp_path: Path, name: str, kept: float) -> None:
    options = VIDEOS.get(name, {}) | ({"options": {"movflags": "faststart"}} if name == "front.mp4" else {})
    whole = media(name, **options).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VltError, match=r"cut off|damaged|cannot be read"):
        Clip(tmp_path / name)


def test_a_video_without_frames(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(VltError, match=r"holds no frame and no sound|cannot be read"):
        Clip(tmp_path / "none.mp4")


@pytest.mark.parametrize("name", ["list.mp4", "list.mkv"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{target}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_does_not_open_other_files(media, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.format(target=media("a.mp4")))
    with pytest.raises(VltError, match="cannot be read as"):
        Clip(tmp_path / name)


def test_sound_that_begins_later(media) -> None:
    assert Clip(media("later.mkv", sound="pcm_s16le", sound_after=1.5)).sound.start == pytest.approx(1.5, abs=0.01)
    assert Clip(media("a.mkv")).sound.start == pytest.approx(0.0, abs=0.05)


def test_a_name_that_looks_like_an_address(media, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "10:30.mp4").write_bytes(media("a.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    clip = Clip("10:30.mp4")
    assert clip.frames(2, 16).shape[0] == 2
    assert clip.spectrograms().shape[0] == 8


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(VltError, match="cannot be opened"):
        Clip("x" * 300 + ".mp4")


def test_a_grey_picture_of_sixteen_bits(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pixels = Clip(tmp_path / "grey.png").pixels(1, 40)[0]
    assert np.abs(pixels[..., 0].astype(int) - (grey >> 8)).max() <= 1


def test_an_mp3_with_scraps_in_it(media, tmp_path: Path) -> None:
    whole = media("a.mp3", size=None, sound="libmp3lame").read_bytes()
    half = len(whole) // 2
    (tmp_path / "scraps.mp3").write_bytes(whole[:half] + b"APETAGEX" + bytes(300) + whole[half:] + b"APETAGEX" * 40)
    clip = Clip(tmp_path / "scraps.mp3")
    assert clip.sound.duration == pytest.approx(2.0, abs=0.2)
    assert clip.spectrograms().isfinite().all()


def test_a_padded_gif(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((20, 30, 3), i * 40, dtype=np.uint8)) for i in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=200)
    (tmp_path / "a.gif").write_bytes((tmp_path / "a.gif").read_bytes() + b"\0")
    assert Clip(tmp_path / "a.gif").n_frames == 3


def test_a_sample_rate_that_no_recording_has(tmp_path: Path, media) -> None:
    content = bytearray(media("a.wav", size=None, sound="pcm_s16le").read_bytes())
    content[24:28] = (4_000_000).to_bytes(4, "little")
    (tmp_path / "fast.wav").write_bytes(content)
    with pytest.raises(VltError, match="4000000 samples per second; at most 768000"):
        Clip(tmp_path / "fast.wav")


BOMB = """
import resource, sys
from vlt import Clip, VltError
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Clip(sys.argv[1])
except VltError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


def test_an_index_that_promises_more_than_the_file_can_hold(media, tmp_path: Path) -> None:
    """A few kilobytes whose table of samples says forty million: refused before the table is built."""
    content = bytearray(media("a.mp4").read_bytes())
    at = content.index(b"stsz") + 4
    content[at + 4 : at + 12] = (1).to_bytes(4, "big") + (40_000_000).to_bytes(4, "big")
    (tmp_path / "bomb.mp4").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "bomb.mp4"], capture_output=True, text=True, timeout=60, check=True
    )
    message, grown = done.stdout.splitlines()
    assert "promises 40000000 samples" in message
    assert float(grown) < 60  # MB


def test_boxes_in_boxes_without_end(tmp_path: Path) -> None:
    (tmp_path / "deep.mp4").write_bytes(b"".join((8 * i).to_bytes(4, "big") + b"moov" for i in range(20_000, 0, -1)))
    with pytest.raises(VltError, match="cannot be read"):
        Clip(tmp_path / "deep.mp4")


def test_cover_art_is_no_video(media, tmp_path: Path) -> None:
    import av

    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "cover.png")
    with av.open(str(media("a.flac", size=None, sound="flac"))) as a, av.open(str(tmp_path / "c.mp3"), "w") as b:
        sound = b.add_stream("libmp3lame", rate=44_100, layout="stereo")
        cover = b.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_image(Image.open(tmp_path / "cover.png"))):
            b.mux(packet)
        for frame in a.decode(audio=0):
            b.mux(sound.encode(frame))
        b.mux(sound.encode(None))
    clip = Clip(tmp_path / "c.mp3")
    assert (clip.kind, clip.n_frames) == ("sound", 0)


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(VltError, match=r"at most 64000000|exceeds limit"):
        Clip(tmp_path / "bomb.png")


LONG = """
import resource, sys
from vlt.inputs.clip import Clip
clip = Clip(sys.argv[1])
clip.frames(8, 64); clip.spectrograms()
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clip = Clip(sys.argv[2])
assert clip.duration > 599, clip
assert clip.frames(8, 64).shape[0] == 8
assert clip.spectrograms(coverage="whole").shape[0] == 8
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


def test_ten_minutes_stay_small_in_memory(media) -> None:
    """6,000 frames of 320 x 180 are 1 GB once decoded, and ten minutes of sound 106 MB: none of it is kept."""
    short = media("short.mkv", size=(320, 180), seconds=1.0)
    long = media("long.mkv", size=(320, 180), seconds=600.0, codec="mpeg4", sound="pcm_s16le", rate=22_050)
    done = subprocess.run([sys.executable, "-c", LONG, short, long], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60  # MB
