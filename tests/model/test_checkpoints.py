"""The original's files: strict, safe, and each in its own option."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlt
from tests.conftest import CHECKPOINTS, REFERENCE, Numbers, close
from vlt.errors import VltError
from vlt.model.checkpoints import convert

FILES = {option: REFERENCE / "checkpoints" / name for option, name in CHECKPOINTS.items()}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def changed(tmp_path: Path, option: str, change) -> dict[str, Path]:
    """The files, one of them changed."""
    content = copy.deepcopy(load(FILES[option]))
    change(content.get("model", content))
    torch.save(content, tmp_path / FILES[option].name)
    return {**FILES, option: tmp_path / FILES[option].name}


def refused(files, llm_folder: Path, tmp_path: Path, sizes, message: str, **options) -> None:
    out = tmp_path / "out"
    with pytest.raises(VltError, match=message):
        convert(files, llm_folder, out, sizes, **options)
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_report(llm_folder: Path, sizes, tmp_path: Path) -> None:
    steps: list[str] = []
    report = convert(FILES, llm_folder, tmp_path / "out", sizes, on_step=steps.append)
    counts = {option: len(v.get("model", v)) for option, v in ((o, load(p)) for o, p in FILES.items())}
    skipped = [key for keys in report.skipped.values() for key in keys]
    for option, count in counts.items():
        gone = sum(key.startswith(f"{option}: ") for key in skipped)
        replaced = sum(first == option for first, _ in report.overridden.values())
        fused = 3 if option == "eva" else 0  # q and v bias become one tensor, in three blocks that are used
        unused_fused = 1 if option == "eva" else 0  # and in the block that is not
        assert report.used.get(option, 0) + gone + replaced + fused + unused_fused == count, option
    assert report.overrides() == {("minigpt4", "vision"): 2, ("imagebind", "audio"): 1}
    assert report.template == "vicuna"
    assert "batch" in report.unused_sizes
    assert len(steps) >= 8


def test_the_branch_overrides_minigpt4(tiny, vision: Numbers) -> None:
    close(tiny.video_projection.weight, vision["weights.llama_proj.weight"], 0)
    assert not torch.equal(tiny.video_projection.weight, load(FILES["minigpt4"])["model"]["llama_proj.weight"])


def test_without_ears_and_without_minigpt4(llm_folder: Path, sizes, tmp_path: Path, vision: Numbers) -> None:
    files = {option: FILES[option] for option in ("vision", "eva", "qformer")}
    report = convert(files, llm_folder, tmp_path / "out", sizes)
    model = vlt.load(tmp_path / "out", device="cpu")
    assert {"imagebind.audio_num_heads", "n_audio_query"} <= set(report.unused_sizes)
    assert model.branches == ("video",)
    out = model.run({"frames": vision["inputs.video"].transpose(1, 2)}, ["video_prefix"])
    close(out["video_prefix"], vision["outputs.inputs_llama"])


def test_a_full_training_checkpoint(llm_folder: Path, sizes, tmp_path: Path) -> None:
    """Beside the weights, a real file holds optimiser, configuration, scaler and epoch."""
    content = load(FILES["vision"]) | {
        "optimizer": {"state": {0: {"step": 1.0}}},
        "config": {"run": {}},
        "scaler": {},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "vl.pth")
    convert({**FILES, "vision": tmp_path / "vl.pth"}, llm_folder, tmp_path / "out", sizes)


def test_an_old_zipless_file(llm_folder: Path, sizes, tmp_path: Path) -> None:
    torch.save(load(FILES["eva"]), tmp_path / "eva.pth", _use_new_zipfile_serialization=False)
    convert({**FILES, "eva": tmp_path / "eva.pth"}, llm_folder, tmp_path / "out", sizes)


SWAPS = [
    ("vision", "audio"),
    ("audio", "vision"),
    ("eva", "imagebind"),
    ("qformer", "eva"),
    ("minigpt4", "vision"),
    ("imagebind", "qformer"),
]


@pytest.mark.parametrize(("option", "file"), SWAPS)
def test_a_file_in_the_wrong_option(option: str, file: str, llm_folder: Path, sizes, tmp_path: Path) -> None:
    refused({**FILES, option: FILES[file]}, llm_folder, tmp_path, sizes, f"--{option} .*give it as --{file}")


def test_an_unknown_key(llm_folder: Path, sizes, tmp_path: Path) -> None:
    files = changed(tmp_path, "vision", lambda s: s.update({"video_Qformer.bert.encoder.layer.1.extra": torch.zeros(2)}))
    refused(files, llm_folder, tmp_path, sizes, "--vision: key 'video_Qformer.bert.encoder.layer.1.extra' has no place")


def test_a_missing_key(llm_folder: Path, sizes, tmp_path: Path) -> None:
    files = changed(tmp_path, "qformer", lambda s: s.pop("ln_vision.bias"))
    refused(files, llm_folder, tmp_path, sizes, "'vision_model.post_layernorm.bias'")


def test_a_missing_size_key(llm_folder: Path, sizes, tmp_path: Path) -> None:
    files = changed(tmp_path, "vision", lambda s: s.pop("llama_proj.weight"))
    files["minigpt4"] = None
    refused(files, llm_folder, tmp_path, sizes, "none of the files holds 'llama_proj.weight'")


def test_a_wrong_shape(llm_folder: Path, sizes, tmp_path: Path) -> None:
    files = changed(tmp_path, "vision", lambda s: s.update({"llama_proj.bias": torch.zeros(7)}))
    refused(files, llm_folder, tmp_path, sizes, r"--vision: 'llama_proj.bias' has shape \[7\]; .* has \[48\] there")


TWICE = {
    "text positions": (
        "imagebind",
        lambda s: s.update({"modality_preprocessors.text.pos_embedding_helper.pos_embed": torch.zeros(1, 77, 28)}),
    ),
    "fused bias": ("eva", lambda s: s.update({"blocks.0.attn.qkv.bias": torch.zeros(120)})),
    "query": (
        "qformer",
        lambda s: s.update({"Qformer.bert.encoder.layer.0.attention.attention.query.weight": torch.zeros(32, 32)}),
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_keys_for_one_tensor(name: str, llm_folder: Path, sizes, tmp_path: Path) -> None:
    refused(changed(tmp_path, *TWICE[name]), llm_folder, tmp_path, sizes, r"is a second one for|are both there")


NUMBERS = {
    "nan": (lambda s: s["llama_proj.weight"].fill_(float("nan")), "holds numbers that are not finite"),
    "integers": (
        lambda s: s.update({"llama_proj.weight": s["llama_proj.weight"].long()}),
        "holds torch.int64; expected floating",
    ),
    "axes": (
        lambda s: s.update({"video_query_tokens": torch.zeros(6)}),
        r"'video_query_tokens' has shape \[6\]; expected 3 axes",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_weights_that_are_none(name: str, llm_folder: Path, sizes, tmp_path: Path) -> None:
    change, message = NUMBERS[name]
    refused(changed(tmp_path, "vision", change), llm_folder, tmp_path, sizes, message)


def llm_copy(llm_folder: Path, folder: Path, change) -> Path:
    """The language model's folder with its tensors or configuration changed; tensors go into a .bin file."""
    shutil.copytree(llm_folder, folder)
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    state = change(state, config) or state
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_tied_and_different(llm_folder: Path, sizes, tmp_path: Path) -> None:
    def tie(state, config):
        config["tie_word_embeddings"] = True

    refused(FILES, llm_copy(llm_folder, tmp_path / "llm", tie), tmp_path, sizes, "its files hold two different tensors")

    def same(state, config):
        tie(state, config)
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    report = convert(FILES, llm_copy(llm_folder, tmp_path / "same", same), tmp_path / "out", sizes)
    assert ["llm: lm_head.weight"] in report.skipped.values()
    model = vlt.load(tmp_path / "out", device="cpu")
    assert torch.equal(model.language_model.lm_head.weight, model.language_model.model.embed_tokens.weight)


def test_tensors_that_share_memory(llm_folder: Path, sizes, tmp_path: Path) -> None:
    def share(state, config):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]

    convert(FILES, llm_copy(llm_folder, tmp_path / "llm", share), tmp_path / "out", sizes)
    model = vlt.load(tmp_path / "out", device="cpu")
    close(model.language_model.lm_head.weight, model.language_model.model.embed_tokens.weight, 0)


def test_not_a_llama(llm_folder: Path, sizes, tmp_path: Path) -> None:
    def gpt(state, config):
        config["model_type"] = "gpt2"

    refused(FILES, llm_copy(llm_folder, tmp_path / "llm", gpt), tmp_path, sizes, "is a 'gpt2' model; .* are LLaMAs")


def test_a_llama_file_that_is_a_list(llm_folder: Path, sizes, tmp_path: Path) -> None:
    refused(
        FILES, llm_copy(llm_folder, tmp_path / "llm", lambda s, c: [1, 2]), tmp_path, sizes, "holds no plain table of tensors"
    )


class Evil:
    def __reduce__(self):
        return (Path("/tmp/vlt-was-here").write_text, ("ran",))


def test_a_file_that_would_run_code(llm_folder: Path, sizes, tmp_path: Path) -> None:
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    refused({**FILES, "vision": tmp_path / "evil.pth"}, llm_folder, tmp_path, sizes, "cannot be read as tensors only")
    (tmp_path / "evil2.pth").write_bytes(pickle.dumps(Evil()))
    refused({**FILES, "vision": tmp_path / "evil2.pth"}, llm_folder, tmp_path, sizes, "cannot be read as tensors only")
    assert not Path("/tmp/vlt-was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer"),
        (b"not a checkpoint", "cannot be read as tensors only"),
        (b"", "cannot be read as tensors only"),
    ],
)
def test_files_that_are_none(content: bytes, message: str, llm_folder: Path, sizes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    refused({**FILES, "vision": tmp_path / "bad.pth"}, llm_folder, tmp_path, sizes, message)


def test_missing_options(llm_folder: Path, sizes, tmp_path: Path) -> None:
    refused({**FILES, "vision": None}, llm_folder, tmp_path, sizes, "--vision is needed")
    refused({**FILES, "audio": None}, llm_folder, tmp_path, sizes, "--imagebind goes with --audio")
    refused({**FILES, "eva": tmp_path / "none.pth"}, llm_folder, tmp_path, sizes, "no such file")


def test_an_output_that_exists(llm_folder: Path, sizes, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(VltError, match="is not an empty folder; nothing was written"):
        convert(FILES, llm_folder, tmp_path / "full", sizes)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


BAD_SIZES = [
    (lambda s: s.pop("vit"), "--eva holds 4 ViT blocks and vit.depth is 39"),
    (lambda s: s["bert"].update(num_attention_heads=5), r"bert.num_attention_heads = 5 does not divide the width 32"),
    (lambda s: s["bert"].update(hidden_size=64), r"says bert.hidden_size = 64, the files say 32"),
    (lambda s: s.update(n_query=9), r"says n_query = 9, the files say 8"),
    (lambda s: s["vit"].update(num_head=4), r"no key 'vit.num_head'; nearest: vit.num_heads"),
    (lambda s: s["vit"].update(num_heads="4"), r"vit.num_heads = '4'; expected a whole number"),
    (lambda s: s.update({"vit.num_heads": 20}), "gives vit.num_heads twice"),
    (lambda s: s.update(image_size=43), "image_size = 43 is no multiple of the ViT's patch of 14"),
    (lambda s: s["llama"].update(num_attention_heads=8), r"says llama.num_attention_heads = 8, the files say 4"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SIZES)
def test_sizes_that_contradict_the_files(change, message: str, llm_folder: Path, sizes, tmp_path: Path) -> None:
    wrong = copy.deepcopy(sizes)
    change(wrong)
    refused(FILES, llm_folder, tmp_path, wrong, message)


def test_the_wrong_language_model(llm_folder: Path, sizes, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(llm_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 5120, "num_attention_heads": 40}))
    wanted = {k: v for k, v in sizes.items() if k != "llama"}
    refused(FILES, folder, tmp_path, wanted, r"--llm is 5120 wide \(13B\); the branches were trained for one of 48")


def test_a_language_model_in_shards(llm_folder: Path, sizes, tmp_path: Path, full: Numbers) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(llm_folder, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(state)
    halves = {"pytorch_model-1.bin": keys[::2], "pytorch_model-2.bin": keys[1::2]}
    for name, half in halves.items():
        torch.save({key: state[key] for key in half}, folder / name)
    index = {"weight_map": {key: name for name, half in halves.items() for key in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(FILES, folder, tmp_path / "out", sizes)
    model = vlt.load(tmp_path / "out", device="cpu")
    close(model.language_model.lm_head.weight, state["lm_head.weight"], 0)
    moved = {**index["weight_map"], keys[0]: "pytorch_model-2.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": moved}))
    (tmp_path / "moved").mkdir()
    refused(FILES, folder, tmp_path / "moved", sizes, r"is in it, and the index does not say so|is not in it")
    index["weight_map"][keys[0]] = "../../etc/passwd"
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "other").mkdir()
    refused(FILES, folder, tmp_path / "other", sizes, "which is no file in that folder")


def test_positions_on_another_grid(llm_folder: Path, sizes, tmp_path: Path, vision: Numbers) -> None:
    """A ViT for larger pictures: its position table is resized, as the original does; others stay as they are."""
    convert(FILES, llm_folder, tmp_path / "out", {**sizes, "image_size": 70})
    model = vlt.load(tmp_path / "out", device="cpu")
    assert model.config.vision_config.image_size == 70
    table = model.vision_model.embeddings.position_embedding
    assert table.shape == (1, 26, 40)
    close(table[:, 0], vision["weights.visual_encoder.pos_embed"][:, 0], 0)
    assert model.run({"frames": torch.zeros(1, 1, 3, 70, 70)}, ["patches"])["patches"].shape == (1, 1, 26, 40)


@pytest.mark.parametrize(("positions", "template"), [(2048, "vicuna"), (4096, "llama2")])
def test_the_chat_format_is_told_from_the_language_model(
    positions: int, template: str, llm_folder: Path, sizes, tmp_path: Path
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(llm_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    assert convert(FILES, folder, tmp_path / "a", sizes).template == template
    assert convert(FILES, folder, tmp_path / "b", sizes, template="llama2").template == "llama2"
    refused(FILES, folder, tmp_path, sizes, "no chat template 'lama'", template="lama")
