"""What several tests share: the original's numbers, the tiny model that must reproduce them, and small media files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from vlt.model.checkpoints import convert
from vlt.model.load import load
from vlt.model.video_llama import VideoLlama
from vlt.train.box import config

REFERENCE = Path(__file__).parent / "reference"
CLIPS = Path(__file__).parents[2] / "shared" / "clips"  # real videos; not part of the project
CHECKPOINTS = {
    "vision": "vl_branch.pth",
    "audio": "al_branch.pth",
    "eva": "eva_vit_g.pth",
    "qformer": "blip2_pretrained_flant5xxl.pth",
    "imagebind": "imagebind_huge.pth",
    "minigpt4": "pretrained_minigpt4.pth",
}
TOLERANCE = 2e-5  # on hidden states, float32


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that at the end no worker is left alone with one (see the Makefile)."""
    long = ("test_notebooks.py", "test_box.py", "test_hearing.py", "test_truth.py")
    items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no training: 0 unknown, 1 begin, 2 end, then byte + 3."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary = special | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def stand_in(dtype: torch.dtype = torch.float32) -> VideoLlama:
    """The box's architecture with random weights, and a token for every byte."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoLlama._from_config(config(259), dtype=dtype)
    model.tokenizer = byte_tokenizer()
    return model.eval().requires_grad_(False)


class Numbers:
    """A reference file: `numbers["outputs.x"]`."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(REFERENCE / f"{name}.safetensors")

    def __getitem__(self, key: str) -> torch.Tensor:
        value = self.tensors[key]
        return value.float() if value.dtype == torch.float16 else value


@pytest.fixture(scope="session")
def vision() -> Numbers:
    return Numbers("vision_tiny")


@pytest.fixture(scope="session")
def audio() -> Numbers:
    return Numbers("audio_tiny")


@pytest.fixture(scope="session")
def full() -> Numbers:
    return Numbers("full_tiny")


@pytest.fixture(scope="session")
def sizes() -> dict:
    return json.loads((REFERENCE / "config.json").read_text())


@pytest.fixture(scope="session")
def llm_folder(full: Numbers, sizes: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's language model as a Hugging Face folder, with the byte tokenizer that its ids stand for."""
    folder = tmp_path_factory.mktemp("llm")
    LlamaConfig(**sizes["llama"], rms_norm_eps=1e-6, max_position_embeddings=2048).save_pretrained(folder)
    weights = {
        k.removeprefix("weights.llama_model."): v for k, v in full.tensors.items() if k.startswith("weights.llama_model.")
    }
    save_file({k: v for k, v in weights.items() if "inv_freq" not in k}, folder / "model.safetensors")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(llm_folder: Path, sizes: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model, converted from files laid out like the published ones."""
    out = tmp_path_factory.mktemp("tiny") / "model"
    convert({option: REFERENCE / "checkpoints" / name for option, name in CHECKPOINTS.items()}, llm_folder, out, sizes)
    return out


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> VideoLlama:
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def boxed() -> VideoLlama:
    return load(device="cpu")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    difference = (a - b).abs().max().item()
    assert difference <= tolerance, f"differ by {difference}"


def real_clip(name: str) -> Path:
    path = CLIPS / name
    if not path.exists():
        pytest.skip(f"real clips are not part of the project; {path} is not there")
    return path


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory):
    """Writes small media files: `media("a.mp4", seconds=2)`."""
    folder = tmp_path_factory.mktemp("media")

    def write(name: str, **options) -> Path:
        path = folder / name
        if not path.exists():
            write_media(path, **options)
        return path

    return write


def moving_square(frame: int, width: int, height: int) -> np.ndarray:
    """A picture that differs from frame to frame: a bright square that moves over a slope."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, frame * 7 % 256)], axis=-1).astype(np.uint8)
    at = frame * 3 % max(width - 8, 1)
    picture[height // 3 : height // 3 + 8, at : at + 8] = (255, 255, 0)
    return picture


def write_media(
    path: Path,
    seconds: float = 2.0,
    size: tuple[int, int] | None = (96, 64),
    fps: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str | None = "aac",
    rate: int = 44_100,
    channels: int = 2,
    frames: int | None = None,
    stamps: list[int] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    sound_after: float = 0.0,
) -> None:
    """A real file, written with PyAV. size None: no pictures. sound None: no sound. stamps: frame times in 1/fps s."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=codec_options or {}) if size else None
        if video is not None:
            video.width, video.height, video.pix_fmt = *size, pixels
            video.codec_context.time_base = Fraction(1, fps)
        audio = container.add_stream(sound, rate=rate, layout="stereo" if channels == 2 else "mono") if sound else None
        if video is not None:
            for i in range(int(seconds * fps) if frames is None else frames):
                frame = av.VideoFrame.from_ndarray(moving_square(i, *size), format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = (stamps[i] if stamps else i), Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            time = np.arange(int(seconds * rate)) / rate
            wave = np.stack([0.4 * np.sin(2 * np.pi * 440 * time * (1 + time / 4)), 0.2 * np.cos(2 * np.pi * 300 * time)])
            block = np.ascontiguousarray(wave[:channels], dtype=np.float32)
            for start in range(0, block.shape[1], 1024):
                piece = np.ascontiguousarray(block[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo" if channels == 2 else "mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, start + int(sound_after * rate), Fraction(1, rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
