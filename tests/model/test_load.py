"""Saving and opening: an exact round trip, and nothing silently missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import vlt
from tests.conftest import REFERENCE, stand_in
from vlt.errors import VltError
from vlt.model import box, sizes
from vlt.model.checkpoints import SKIPPED, _our_name
from vlt.model.config import VideoLlamaConfig
from vlt.model.load import load_config
from vlt.model.video_llama import VideoLlama


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


@pytest.fixture(scope="module")
def saved(boxed: VideoLlama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "box"
    boxed.save_pretrained(folder)
    return folder


def test_round_trip(boxed: VideoLlama, saved: Path) -> None:
    again = vlt.load(saved, device="cpu")
    same_weights(boxed, again)
    assert again.answer(None, "What?", max_new_tokens=5).ids == boxed.answer(None, "What?", max_new_tokens=5).ids
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training


def test_configuration_round_trip(boxed: VideoLlama, saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert type(config) is VideoLlamaConfig
    strip = lambda c: {k: v for k, v in c.to_dict().items() if k not in ("_name_or_path", "architectures", "dtype")}  # noqa: E731
    ours, theirs = strip(boxed.config), strip(config)
    assert json.dumps(ours, default=str, sort_keys=True) == json.dumps(theirs, default=str, sort_keys=True)


def test_auto_model(boxed: VideoLlama, saved: Path) -> None:
    model = AutoModel.from_pretrained(saved)
    assert type(model) is VideoLlama
    same_weights(boxed, model)


def published() -> VideoLlamaConfig:
    return VideoLlamaConfig(audio_qformer_config={}, imagebind_config={"audio": {}, "vision": {}, "text": {}})


def test_defaults_are_the_published_sizes() -> None:
    config = published()
    with torch.device("meta"):
        model = VideoLlama(config)
    assert config.imagebind_config.audio.grid == (12, 19)
    count = lambda *names: sum(p.numel() for n in names for p in model.get_submodule(n).parameters()) / 1e6  # noqa: E731
    assert count("vision_model") == pytest.approx(985.95, abs=0.1)
    assert count("image_qformer") == pytest.approx(105.14, abs=0.01)
    assert count("video_qformer") == pytest.approx(18.91, abs=0.02)
    assert count("audio_qformer") == pytest.approx(19.69, abs=0.02)
    assert count("imagebind.audio") == pytest.approx(86.24, abs=0.5)
    assert count("language_model") == pytest.approx(6738.4, abs=1)


FULL_SIZE = {
    "vl_branch_7b": "",
    "al_branch_7b": "",
    "imagebind_huge": "audio_encoder.",
    "eva_vit_g_used": "visual_encoder.",
    "blip2_pretrained_flant5xxl_used": "",
    "pretrained_minigpt4_7b_used": "",
}


@pytest.mark.parametrize("file", FULL_SIZE)
def test_every_published_key_has_its_place(file: str) -> None:
    """Names and shapes at full size, without a weight: a key is renamed, or skipped by a rule."""
    with torch.device("meta"):
        expected = VideoLlama(published()).state_dict()
    for key, (shape, _) in json.loads((REFERENCE / "keys.json").read_text())[file].items():
        full = FULL_SIZE[file] + key
        if any(re.fullmatch(pattern, full) for pattern, _ in SKIPPED) or re.search(r"attn\.[qv]_bias", full):
            continue
        name = _our_name(full) if full != sizes.AUDIO_SCALE else "imagebind.text.log_scale"  # a number in the configuration
        assert name in expected, full
        assert list(expected[name].shape) == shape, full


def test_every_part_attends_as_it_is_told(saved: Path) -> None:
    """One switch reaches the ViT, the Q-Formers, ImageBind's trunks and the language model."""
    model = AutoModel.from_pretrained(saved)
    model.set_attn_implementation("eager")
    modules = [m for m in model.modules() if "Attention" in type(m).__name__ and hasattr(m, "config")]
    assert len({type(m) for m in modules}) == 4
    assert {m.config._attn_implementation for m in modules} == {"eager"}


def test_a_note_is_a_warning(tmp_path: Path) -> None:
    model = stand_in()
    model.config.note = "random weights: its answers mean nothing"
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="its answers mean nothing"):
        assert vlt.load(tmp_path, device="cpu").config.note


def test_the_box_is_small_and_trained() -> None:
    folder = box.folder()
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10e6
    assert {p.suffix for p in folder.iterdir()} <= {".safetensors", ".json", ".md", ".png"}
    assert not vlt.load(device="cpu").config.note


def test_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "PLACES", (Path("/nowhere/vlt/box"), Path("/nowhere/data/box")))
    with pytest.raises(
        VltError, match=r"the model in the box is not there \(looked in /nowhere/vlt/box and /nowhere/data/box\)"
    ):
        vlt.load()


MISFITS = {
    "missing": r"1 missing keys in its weights, for example video_projection\.weight",
    "unexpected": r"1 unexpected keys in its weights, for example extra\.weight",
    "shape": r"1 mismatched keys in its weights, for example .*video_projection\.weight",
    "half a file": "cannot be opened",
}


@pytest.mark.parametrize("change", MISFITS)
def test_weights_that_do_not_fit_are_refused(saved: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    state = load_file(folder / "model.safetensors")
    if change == "missing":
        del state["video_projection.weight"]
    elif change == "unexpected":
        state["extra.weight"] = torch.zeros(2)
    elif change == "shape":
        state["video_projection.weight"] = torch.zeros(3, 4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if change == "half a file":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VltError, match=MISFITS[change]):
        vlt.load(folder)


def test_no_model_there(tmp_path: Path, boxed: VideoLlama) -> None:
    for name in ("nowhere", "./nowhere", tmp_path / "nowhere"):
        with pytest.raises(VltError, match="no such folder"):
            vlt.load(name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(VltError, match="is a file"):
        vlt.load(tmp_path / "file")
    with pytest.raises(VltError, match="is a file; give a folder"):
        boxed.save_pretrained(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(VltError, match=r"holds no config\.json"):
        vlt.load(tmp_path)


def test_half_precision_keeps_its_type(saved: Path) -> None:
    model = vlt.load(saved, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    out = model.run({"frames": torch.randn(1, 2, 3, 64, 64)}, ["video_prefix"])
    assert out["video_prefix"].dtype == torch.bfloat16
    sound = model.run({"spectrograms": torch.randn(1, 2, 1, 128, 204)}, ["audio_features", "audio_prefix"])
    assert sound["audio_prefix"].dtype == torch.bfloat16
    # what must not be rounded with the weights: rotary frequencies, and the length of a sound's embedding
    for opened in (model, stand_in(torch.bfloat16)):
        assert opened.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert opened.imagebind.audio.scale() == opened.config.imagebind_config.audio.scale
    assert len(model.answer(None, "What?", max_new_tokens=3).ids) == 3


def test_another_kind_of_folder(llm_folder: Path) -> None:
    with pytest.raises(VltError, match="is a 'llama' model, not a Video-LLaMA"):
        vlt.load(llm_folder)
    with pytest.raises(VltError, match="is a 'llama' model, not a Video-LLaMA"):
        load_config(llm_folder)


def test_spread_over_devices(saved: Path, boxed: VideoLlama) -> None:
    """accelerate moves what it has put on disk only where a module is called, so every part must be."""
    parts = [name.split(".")[0] for name, _ in boxed.named_parameters()]
    spread = dict.fromkeys(parts, "cpu") | dict.fromkeys(
        ["frame_position", "segment_position", "video_qformer", "vision_model"], "disk"
    )
    model = vlt.load(saved, dtype=torch.float32, device_map=spread, offload_folder=saved.parent / "offload")
    given = {"frames": torch.randn(1, 2, 3, 64, 64), "spectrograms": torch.randn(1, 2, 1, 128, 204)}
    want = ["video_prefix", "audio_prefix"]
    for a, b in zip(model.run(given, want).values(), boxed.run(given, want).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    with pytest.raises(VltError, match="device or device_map, not both"):
        vlt.load(saved, device="cpu", device_map="auto")


def test_device_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLT_DEVICE", "meta")
    assert vlt.load().device.type == "meta"
    assert vlt.load(device="cpu").device.type == "cpu"  # what is said here goes first
    monkeypatch.setenv("VLT_DEVICE", "graphics")
    with pytest.raises(
        VltError, match=r"device 'graphics': expected auto, cpu, cuda or cuda:1, \.\.\. \(argument, or VLT_DEVICE\)"
    ):
        vlt.load()
    monkeypatch.setenv("VLT_DEVICE", f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(VltError, match=f"this machine has {torch.cuda.device_count()} CUDA devices"):
        vlt.load()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_as_on_a_cpu(boxed: VideoLlama, saved: Path) -> None:
    with pytest.warns(UserWarning):
        model = vlt.load(saved, device="cuda", dtype=torch.float32)
    frames = torch.randn(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = model.run({"frames": frames}, ["video_prefix"])["video_prefix"].cpu()
    torch.testing.assert_close(ours, boxed.run({"frames": frames}, ["video_prefix"])["video_prefix"], atol=1e-3, rtol=0)


def test_inconsistent_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        VideoLlamaConfig(audio_qformer_config={})
    with pytest.raises(ValueError, match=r"the Video Q-Former looks at 768 numbers .* gives 96"):
        VideoLlamaConfig(image_qformer_config={"hidden_size": 96, "num_attention_heads": 4})
