"""The original's published files, and language models' folders, read as tensors and nothing else.

Nothing in a file is run, and a file in the wrong option is recognised by its keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from vlt.errors import VltError, first_line, nearest, read_json

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the original's files. option: how it is given. prefix: what its keys are called in the original's model.
    sign: a key that only this file has."""

    option: str
    prefix: str
    sign: str
    what: str


# In the original's loading order: a later file overrides an earlier one.
SOURCES = (
    Source("eva", "visual_encoder.", "blocks.0.attn.qkv.weight", "EVA-CLIP ViT-g (eva_vit_g.pth)"),
    Source("qformer", "", "query_tokens", "BLIP-2's Q-Former (blip2_pretrained_flant5xxl.pth)"),
    Source("minigpt4", "", "llama_proj.weight", "MiniGPT-4's projection (pretrained_minigpt4.pth)"),
    Source("imagebind", "audio_encoder.", "modality_trunks.audio.blocks.0.norm_1.weight", "ImageBind (imagebind_huge.pth)"),
    Source("vision", "", "video_query_tokens", "a Video-LLaMA vision-language branch"),
    Source("audio", "", "audio_query_tokens", "a Video-LLaMA audio-language branch"),
)


def check_options(files: Mapping[str, str | Path | None]) -> dict[str, Path]:
    known = [source.option for source in SOURCES]
    if unknown := [option for option in files if option not in known]:
        raise VltError(f"no option {unknown[0]!r}; {nearest(unknown[0], known)}")
    paths = {option: Path(path) for option, path in files.items() if path is not None}
    if missing := [option for option in ("eva", "qformer", "vision") if option not in paths]:
        raise VltError(f"--{missing[0]} is needed: {next(s.what for s in SOURCES if s.option == missing[0])}")
    if ("audio" in paths) != ("imagebind" in paths):
        have, lack = ("audio", "imagebind") if "audio" in paths else ("imagebind", "audio")
        raise VltError(f"--{have} goes with --{lack}: give both, or neither (a model without ears)")
    for option, path in paths.items():
        if not path.is_file():
            raise VltError(f"--{option} {path}: no such file")
    return paths


def _load(path: Path) -> Any:
    """A .pth or .safetensors file's contents; nothing in it is run."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise VltError(f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6: no mmap
    except Exception as error:  # a damaged pickle can raise anything
        raise VltError(
            f"{path}: cannot be read as tensors only ({first_line(error)}); is it whole, and a PyTorch checkpoint?"
        ) from error


def read(source: Source, path: Path) -> State:
    """A file's tensors, checked to be the file that this option asks for."""
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]  # beside it: optimizer, config, scaler, epoch
    content = _tensors(content, path)
    found = _recognised(content)
    if found is None:
        keys = ", ".join(list(content)[:3])
        raise VltError(f"--{source.option} {path}: is not {source.what}: no key {source.sign!r}; it begins with {keys}")
    if found is not source:
        raise VltError(f"--{source.option} {path}: is {found.what}; give it as --{found.option}")
    return content


def _recognised(content: Mapping[str, Tensor]) -> Source | None:
    # branch files come last in SOURCES and may hold other parts' keys too, so the last that matches is the one
    found = [source for source in SOURCES if source.sign in content]
    return found[-1] if found else None


def read_llm(folder: Path) -> State:
    """A Hugging Face folder's tensors, in shards or not."""
    if not folder.is_dir():
        raise VltError(f"--llm {folder}: is not a folder; give the folder of a Hugging Face language model")
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).is_file():
            return _read_shards(folder, index)
        if (folder / single).is_file():
            return _tensors(_load(folder / single), folder / single)
    raise VltError(f"--llm {folder}: holds neither model.safetensors nor pytorch_model.bin (nor their index)")


def _read_shards(folder: Path, index: str) -> State:
    """Every tensor from the file that the index names for it, and no other."""
    where = read_json(folder / index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise VltError(f"{folder / index}: holds no weight_map of names")
    state: State = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise VltError(f"--llm {folder}: {index} names {name!r}, which is no file in that folder")
        content = _tensors(_load(folder / name), folder / name)
        promised = {key for key, file in where.items() if file == name}
        if odd := sorted(promised ^ set(content)):
            what = "is not in it" if odd[0] in promised else "is in it, and the index does not say so"
            raise VltError(f"--llm {folder / name}: {odd[0]!r} {what}")
        state |= content
    return state


def _tensors(content: Any, path: Path) -> State:
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise VltError(f"{path}: holds no plain table of tensors")
    return dict(content)


def llm_config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise VltError(f"--llm {folder}: its config.json is not one that transformers reads ({first_line(error)})") from error
    if config.model_type != "llama":
        raise VltError(
            f"--llm {folder}: is a {config.model_type!r} model; Video-LLaMA's language models are LLaMAs (Vicuna, LLaMA-2)"
        )
    return config


def told_template(given: str | None, tokenizer: Any) -> str | None:
    """A tokenizer that carries LLaMA-2's own chat format settles it."""
    told = getattr(tokenizer, "chat_template", None)
    return given or ("llama2" if isinstance(told, str) and "[INST]" in told else None)


def llm_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its tokenizer back-ends raise many kinds
        raise VltError(
            f"--llm {folder}: its tokenizer cannot be read ({first_line(error)}); put the model's tokenizer files there"
        ) from error
