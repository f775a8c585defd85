"""Sound: which seconds are listened to, and their mel spectrograms as ImageBind wants them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import av.error
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz, spectrogram, window_function

from vlt.errors import VltError, nearest
from vlt.inputs import media

# Constants of the original (ImageBind's data.py, called by conversation_video.py).
SAMPLE_RATE = 16_000  # Hz
MAX_RATE = 768_000  # Hz, of a file: no recording has more, and the resampler's memory grows with it
N_SEGMENTS = 8
SEGMENT_SECONDS = 2
N_MELS = 128
N_TIMES = 204  # spectrogram columns, 10 ms apart; 2 s give 198, the rest is padding
MEL_FLOOR = 1.192092955078125e-07  # of a mel band's power: digital silence
LOG_MEL_MEAN, LOG_MEL_STD = -4.268, 9.138
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms
MEL_RANGE = (20.0, 8000.0)  # Hz

# torchaudio's resampler: a sinc kernel under a Hann window.
_ZEROS, _ROLLOFF = 6, 0.99

COVERAGES = ("original", "whole")


@dataclasses.dataclass(frozen=True)
class Sound:
    """What a file's sound is.

    state: "there", "absent" (no sound stream) or "unreadable" (`problem` says why).
    rate: samples per second; start: when it begins, in seconds after the first frame.
    """

    state: str
    problem: str = ""
    rate: int = 0
    channels: int = 0
    n_samples: int = 0
    start: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds, after resampling to 16 kHz as the original measures it."""
        return _resampled_length(self.n_samples, self.rate) / SAMPLE_RATE if self.rate else 0.0


def scan_sound(path: Path) -> Sound:
    """Decodes the sound once, keeping nothing, to learn how long it is and whether all of it can be decoded."""
    try:
        with media.open_media(path) as container:
            if not container.streams.audio:
                return Sound("absent")
            rate, channels, count, start = 0, 0, 0, None
            for frame in _decoded(container):
                if frame.sample_rate > MAX_RATE:
                    return Sound("unreadable", f"{frame.sample_rate} samples per second; at most {MAX_RATE} are read")
                if rate and (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                    return Sound("unreadable", f"its sample rate or channels change after {count / rate:.2f} s")
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                start = (frame.time or 0.0) if start is None else start
                count += frame.samples
    except VltError as error:
        return Sound("unreadable", str(error))
    if count < WINDOW * rate / SAMPLE_RATE or count == 0:
        seconds = count / rate if rate else 0.0
        return Sound("unreadable", f"{seconds:.3f} s of sound is shorter than one spectrogram window (0.025 s)")
    return Sound("there", "", rate, channels, count, start or 0.0)


def _decoded(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """The frames of the first sound stream. An mp3 may hold scraps that are no sound (tags, mostly): players pass over
    them, and so do we; in other containers a packet that cannot be decoded is damage, and an error."""
    for packet in container.demux(container.streams.audio[0]):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if container.format.name != "mp3":
                raise


def segment_bounds(
    seconds: float, n_segments: int = N_SEGMENTS, coverage: str = "original", length: float = SEGMENT_SECONDS
) -> list[tuple[Fraction, Fraction]]:
    """Start and end in seconds of every segment of a sound that lasts `seconds`.

    coverage "original": starts (seconds - length) / n_segments apart, as in pytorchvideo 0.1.5; the tail is never
    heard. "whole": the first starts at 0 and the last ends at the end. Segments overlap in short sounds; a sound
    shorter than a segment gives the same one n times.
    """
    check_coverage(coverage)
    if n_segments < 1:
        raise VltError(f"{n_segments} segments were asked for; at least 1")
    span = max(Fraction(seconds) - Fraction(length), Fraction(0))
    parts = n_segments if coverage == "original" else max(n_segments - 1, 1)
    return [(span * i / parts, span * i / parts + Fraction(length)) for i in range(n_segments)]


def check_coverage(coverage: str) -> None:
    if coverage not in COVERAGES:
        raise VltError(f"no coverage {coverage!r}; {nearest(coverage, COVERAGES)}")


def spectrograms_of_waveform(
    waveform: Float[Tensor, "channel sample"],
    rate: int,
    bounds: Sequence[tuple[Fraction, Fraction]] | None = None,
    n_times: int = N_TIMES,
) -> Float[Tensor, "segment 1 mel time"]:
    """Waveform in -1..1 -> normalised log-mel spectrograms of its segments, float32.

    bounds: start and end of each segment in seconds; by default the original's eight of two seconds.
    """
    total = waveform.shape[1]
    bounds = segment_bounds(_resampled_length(total, rate) / SAMPLE_RATE) if bounds is None else bounds
    return _spectrograms(lambda spans: [waveform[:, a:b] for a, b in spans], total, rate, bounds, n_times)


def spectrograms_of_file(
    path: Path, sound: Sound, bounds: Sequence[tuple[Fraction, Fraction]], n_times: int = N_TIMES, delay: float = 0.0
) -> Float[Tensor, "segment 1 mel time"]:
    """As `spectrograms_of_waveform`, straight from a file: only the seconds that are listened to are kept in memory.
    delay: seconds by which the sound comes later (below 0: earlier); silence moves in, what moves out is lost."""
    late = round(delay * sound.rate)

    def inside(at: int) -> int:
        return min(max(at, 0), sound.n_samples)

    def read(spans: list[tuple[int, int]]) -> list[Tensor]:
        there = [(inside(first - late), inside(last - late)) for first, last in spans]
        waves = read_spans(path, there) if any(a < b for a, b in there) else [torch.zeros(sound.channels, 0) for _ in spans]
        return [
            nn.functional.pad(wave, (a + late - first, (last - first) - (a + late - first) - wave.shape[1]))
            if a < b
            else torch.zeros(sound.channels, last - first)
            for wave, (a, b), (first, last) in zip(waves, there, spans, strict=True)
        ]

    return _spectrograms(read if late else lambda spans: read_spans(path, spans), sound.n_samples, sound.rate, bounds, n_times)


def read_spans(path: Path, spans: Sequence[tuple[int, int]]) -> list[Float[Tensor, "channel sample"]]:
    """Samples first..last of a file's sound, at its own rate, in -1..1, for each (first, last), in one pass."""
    pieces: list[list[np.ndarray]] = [[] for _ in spans]
    with media.open_media(path) as container:
        convert = av.AudioResampler(format="fltp")
        at, stop = 0, max(last for _, last in spans)
        for frame in _decoded(container):
            for part in convert.resample(frame):
                block = part.to_ndarray()
                for kept, (first, last) in zip(pieces, spans, strict=True):
                    if at < last and at + block.shape[1] > first:
                        kept.append(block[:, max(first - at, 0) : last - at])
                at += block.shape[1]
            if at >= stop:
                break
    return [torch.from_numpy(np.concatenate(kept, axis=1)) for kept in pieces]


def _spectrograms(read, total: int, rate: int, bounds, n_times: int) -> Tensor:
    """The original takes each segment's mean out in place, so overlapping segments see samples that earlier ones
    already shifted; segments that touch therefore share one piece of waveform ("island")."""
    length = _resampled_length(total, rate)
    cuts = [(min(int(a * SAMPLE_RATE), length), min(int(b * SAMPLE_RATE), length)) for a, b in bounds]
    islands = _islands(cuts)
    waves = read([_span_needed(a, b, total, rate) for a, b in islands])
    out: list[Tensor | None] = [None] * len(cuts)
    for (first, last), wave in zip(islands, waves, strict=True):
        low = _span_needed(first, last, total, rate)[0]
        wave = resample(wave, rate, first, last, low).clone()
        for i, (a, b) in enumerate(cuts):
            if first <= a and b <= last and out[i] is None:
                segment = wave[:, a - first : b - first]
                segment -= segment.mean()
                out[i] = _log_mel(segment[0].numpy(), n_times)
    return torch.stack([s for s in out if s is not None])[:, None]


def _islands(cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    islands: list[tuple[int, int]] = []
    for a, b in sorted(cuts):
        if islands and a <= islands[-1][1]:
            islands[-1] = (islands[-1][0], max(b, islands[-1][1]))
        else:
            islands.append((a, b))
    return islands


def _log_mel(samples: np.ndarray, n_times: int) -> Float[Tensor, "mel time"]:
    """Kaldi's filter bank. Padding is zero *before* normalising, so it ends up at +0.467 and silence at -1.278."""
    padded = np.zeros((N_MELS, n_times), dtype=np.float32)
    if len(samples) >= WINDOW:
        mel = spectrogram(
            samples,
            window_function(WINDOW, "hann", periodic=False),
            frame_length=WINDOW,
            hop_length=HOP,
            fft_length=FFT,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=_filters(),
            log_mel="log",
            mel_floor=MEL_FLOOR,
            remove_dc_offset=True,
        )
        padded[:, : mel.shape[1]] = mel[:, :n_times]
    return torch.from_numpy((padded - LOG_MEL_MEAN) / LOG_MEL_STD)


@lru_cache
def _filters() -> np.ndarray:
    with warnings.catch_warnings():
        # The fourth filter lies between two bins of the FFT and is empty, in Kaldi's bank too: its row is always silence.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        return mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=N_MELS,
            min_frequency=MEL_RANGE[0],
            max_frequency=MEL_RANGE[1],
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )


def column_times(n_times: int = N_TIMES) -> Float[np.ndarray, "time"]:
    """Middle of every spectrogram column's window, in seconds from the start of its segment (also of the padding)."""
    return (np.arange(n_times) * HOP + WINDOW / 2) / SAMPLE_RATE


def whole_columns(seconds: float, n_times: int = N_TIMES) -> int:
    """How many of a spectrogram's columns are of sound of so many seconds, at least 1; the rest reach into the padding."""
    half = WINDOW / 2 / SAMPLE_RATE
    return max(int((column_times(n_times) + half <= seconds + 1e-6).sum()), 1)


def mel_frequencies() -> Float[np.ndarray, "mel"]:
    """Centre of every mel bin in Hz."""
    low, high = (hertz_to_mel(f, mel_scale="kaldi") for f in MEL_RANGE)
    return np.asarray(mel_to_hertz(np.linspace(low, high, N_MELS + 2)[1:-1], mel_scale="kaldi"))


def resample(
    wave: Float[Tensor, "channel sample"], rate: int, first: int = 0, last: int | None = None, offset: int = 0
) -> Float[Tensor, "channel resampled"]:
    """Samples first..last of a track at 16 kHz, from `wave`, which starts at the track's sample `offset` at `rate` Hz.

    Sinc interpolation under a Hann window, the numbers of torchaudio's default resampler. Each output sample is made
    from its own few inputs, so a part of a track costs only that part, and no common multiple of the rates matters.
    """
    last = _resampled_length(offset + wave.shape[1], rate) if last is None else last
    if rate == SAMPLE_RATE:
        return wave[:, first - offset : last - offset]
    common = math.gcd(rate, SAMPLE_RATE)
    source, target = rate // common, SAMPLE_RATE // common
    base = min(source, target) * _ROLLOFF
    width = math.ceil(_ZEROS * source / base)
    padded = torch.nn.functional.pad(wave, (width, width + 1))
    blocks = []
    taps = torch.arange(-width, width + 2)
    step = max(1_000_000 // len(taps), 1)  # so many at a time: memory stays small
    for start in range(first, last, step):
        out = torch.arange(start, min(start + step, last), dtype=torch.int64)
        centre = torch.div(out * source, target, rounding_mode="floor")
        # time between each tap and the output sample, in zero crossings of the sinc; exact integers until divided
        t = (taps * target - ((out * source) % target)[:, None]).double() * (base / (source * target))
        t = t.clamp(-_ZEROS, _ZEROS)
        weight = torch.cos(t * math.pi / _ZEROS / 2) ** 2 * torch.sinc(t) * (base / source)
        at = (centre[:, None] - offset + taps + width).clamp(0, padded.shape[1] - 1)
        blocks.append(torch.einsum("cot,ot->co", padded[:, at], weight.float()))
    return torch.cat(blocks, dim=1) if blocks else wave[:, :0]


def _span_needed(first: int, last: int, total: int, rate: int) -> tuple[int, int]:
    """The samples at `rate` from which 16 kHz samples first..last are made."""
    if rate == SAMPLE_RATE:
        return first, last
    reach = math.ceil(_ZEROS * rate / (min(rate, SAMPLE_RATE) * _ROLLOFF)) + 1
    return max(first * rate // SAMPLE_RATE - reach, 0), min(math.ceil(last * rate / SAMPLE_RATE) + reach, total)


def _resampled_length(n_samples: int, rate: int) -> int:
    return math.ceil(n_samples * SAMPLE_RATE / rate) if rate != SAMPLE_RATE else n_samples
