"""Sound: the original's segments and spectrograms."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.conftest import REFERENCE, Numbers, close, real_clip
from vlt.errors import VltError
from vlt.inputs import audio
from vlt.inputs.clip import Clip

STORED = json.loads((REFERENCE / "fbank.json").read_text())


@pytest.fixture(scope="module")
def fbank() -> Numbers:
    return Numbers("fbank")


@pytest.mark.parametrize("n_segments", [3, 8])
def test_segments_lie_where_the_original_puts_them(n_segments: int) -> None:
    for seconds, rows in STORED[f"timepoints_clips{n_segments}"].items():
        for (start, end), row in zip(audio.segment_bounds(float(seconds), n_segments), rows, strict=True):
            assert [float(start), float(end), int(start * 16_000), int(end * 16_000)] == row


def test_the_original_never_hears_the_tail_and_whole_does() -> None:
    assert audio.segment_bounds(60.0)[-1][1] == Fraction(60) - Fraction(58, 8)
    whole = audio.segment_bounds(60.0, coverage="whole")
    assert (whole[0][0], whole[-1][1]) == (0, 60)
    assert len({b - a for a, b in zip([s for s, _ in whole], [s for s, _ in whole][1:], strict=False)}) == 1
    assert audio.segment_bounds(1.0, coverage="whole") == [(0, 2)] * 8
    assert audio.segment_bounds(9.0, 1, "whole") == [(0, 2)]


@pytest.mark.parametrize(("options", "message"), [({"coverage": "hole"}, "nearest: whole"), ({"n_segments": 0}, "at least 1")])
def test_bad_segments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(VltError, match=message):
        audio.segment_bounds(5.0, **options)


@pytest.mark.parametrize(("name", "rate"), [("mono16k", 16_000), ("stereo", 22_050), ("short16k", 16_000)])
def test_spectrograms_are_the_originals(fbank: Numbers, name: str, rate: int) -> None:
    ours = audio.spectrograms_of_waveform(fbank[f"inputs.{name}"], rate)
    suffix = "" if name == "mono16k" else ".first_last"
    theirs = fbank[f"outputs.{name}.clips8{suffix}"]
    close(ours if name == "mono16k" else ours[[0, 7]], theirs, 1e-3)  # worst single bin; the mean is far below
    assert ((ours if name == "mono16k" else ours[[0, 7]]) - theirs).abs().mean() < 1e-5


def test_three_segments(fbank: Numbers) -> None:
    ours = audio.spectrograms_of_waveform(fbank["inputs.mono16k"], 16_000, audio.segment_bounds(8.0, 3))
    close(ours[..., ::4], fbank["outputs.mono16k.clips3"], 1e-3)


def test_resampling_is_torchaudios(fbank: Numbers) -> None:
    ours = audio.resample(fbank["inputs.stereo"], 22_050)
    assert ours.shape[1] == STORED["stereo_resampled_samples"]
    close(ours[:, :8000], fbank["outputs.stereo.resampled16k.first_8000"])
    close(ours[:, -2000:], fbank["outputs.stereo.resampled16k.last_2000"])


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_099, 44_100, 48_000])
def test_a_part_resamples_as_the_whole_does(rate: int) -> None:
    time = torch.arange(3 * rate) / rate
    wave = torch.stack([torch.sin(2 * math.pi * 440 * time), torch.cos(2 * math.pi * 1000 * time)])
    whole = audio.resample(wave, rate)
    assert whole.shape[1] == 3 * 16_000
    ideal = torch.sin(2 * math.pi * 440 * torch.arange(3 * 16_000) / 16_000)
    close(whole[0, 500:-500], ideal[500:-500], 2e-3)
    first, last = 20_001, 30_007
    low, high = audio._span_needed(first, last, wave.shape[1], rate)
    assert high - low < wave.shape[1] / 2
    close(audio.resample(wave[:, low:high], rate, first, last, low), whole[:, first:last], 1e-6)


def test_padding_and_silence_have_their_own_values() -> None:
    spectrograms = audio.spectrograms_of_waveform(torch.zeros(1, 32_000), 16_000)
    assert spectrograms.shape == (8, 1, 128, 204)
    assert spectrograms[0, 0, :, :198].unique().tolist() == pytest.approx([-1.278], abs=1e-3)
    assert spectrograms[0, 0, :, 198:].unique().tolist() == pytest.approx([0.46706], abs=1e-5)


def test_only_the_first_channel_is_heard_and_the_mean_is_taken_over_both() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, 1, 32_000, generator=generator) - 0.5
    both = audio.spectrograms_of_waveform(torch.cat([left, right]), 16_000)
    close(both, audio.spectrograms_of_waveform(left, 16_000), 1e-3)
    assert (both - audio.spectrograms_of_waveform(right, 16_000)).abs().mean() > 0.05


@pytest.mark.parametrize("name", STORED["files"])
def test_real_files(name: str, fbank: Numbers) -> None:
    import hashlib

    clip, stored = Clip(real_clip(name)), STORED["files"][name]
    assert clip.sound.duration == stored["seconds_after_resample"]
    wave = audio.read_spans(clip.path, [(0, clip.sound.n_samples)])[0].numpy()
    assert hashlib.sha256(np.ascontiguousarray(wave).tobytes()).hexdigest() == stored["waveform_f32_sha256"]
    difference = (clip.spectrograms()[:, :, ::8, ::4] - fbank[f"outputs.file.{name}.clips8_sub"]).abs()
    assert difference.max() < 1e-2  # one bin near silence
    assert difference.mean() < 1e-5


@pytest.mark.parametrize("coverage", audio.COVERAGES)
@pytest.mark.parametrize("seconds", [0.7, 5.0, 40.0])
def test_a_file_gives_what_its_waveform_gives(media, seconds: float, coverage: str) -> None:
    """Long enough, the file's segments no longer touch and are read apart."""
    clip = Clip(media(f"{seconds}.wav", size=None, sound="pcm_s16le", seconds=seconds))
    wave = audio.read_spans(clip.path, [(0, clip.sound.n_samples)])[0]
    expected = audio.spectrograms_of_waveform(wave, clip.sound.rate, clip.segments(coverage=coverage))
    close(clip.spectrograms(coverage=coverage), expected, 1e-3)


def test_mel_bins_have_their_frequencies() -> None:
    hertz = audio.mel_frequencies()
    assert len(hertz) == 128
    assert (np.diff(hertz) > 0).all()
    peaks = audio._filters().argmax(axis=0) * 16_000 / 512
    used = audio._filters().max(axis=0) > 0
    assert np.abs(peaks - hertz)[used].max() <= 16_000 / 512
