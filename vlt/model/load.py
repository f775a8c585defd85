"""Opening a model: the one in the box, a folder, or a hub's."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from vlt.errors import VltError, check_type, first_line, read_json
from vlt.model import box
from vlt.model.config import VideoLlamaConfig
from vlt.model.video_llama import VideoLlama


def load(
    name: str | Path = "box", *, device: str | torch.device | None = None, dtype: torch.dtype | None = None, **options: Any
) -> VideoLlama:
    """A model that is ready to be looked into: in evaluation mode, no parameter asking for a gradient.

    name: "box" (the small model that vlt carries), a folder that `vlt convert` or `save_pretrained` wrote, or the name
    of such a folder on the Hugging Face hub. device: by default what the environment variable VLT_DEVICE says
    (auto, cpu, cuda, cuda:1), and else CUDA where there is one. dtype: by default float32 on a CPU and bfloat16 elsewhere.
    options: for `from_pretrained`, for example `device_map`, `quantization_config`.

    Raises `VltError` where the weights are not all there, or not all used. A model's note is issued as a warning.
    """
    check_type(name, (str, Path), "the name of a model")
    if device is not None and options.get("device_map") is not None:
        raise VltError("give device or device_map, not both")
    device = _device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    with _without_bar() if name == "box" else nullcontext():
        model = _from_pretrained(box.folder() if name == "box" else name, dtype, options)
    if options.get("device_map") is None and options.get("quantization_config") is None:
        # the device only: `.to(dtype)` would also round the rotary frequencies, which transformers keeps in float32
        torch.nn.Module.to(model, device)
    model.eval().requires_grad_(False)
    if model.config.note:
        warnings.warn(f"{name}: {model.config.note}", stacklevel=2)
    return model


@contextmanager
def _without_bar() -> Iterator[None]:
    """The box is opened in a moment: transformers need not draw a progress bar."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _device(asked: str | torch.device | None) -> torch.device:
    name = asked or os.environ.get("VLT_DEVICE", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise VltError(f"device {str(name)!r}: expected auto, cpu, cuda or cuda:1, ... (argument, or VLT_DEVICE)") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise VltError(f"device {str(name)!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def load_config(name: str | Path = "box") -> VideoLlamaConfig:
    """The sizes of a model, without its weights; names as for `load`."""
    name = box.folder() if name == "box" else name
    _check_folder(name)
    try:
        return VideoLlamaConfig.from_pretrained(name, local_files_only=Path(name).exists())
    except (OSError, ValueError, KeyError) as error:
        raise VltError(_cannot_open(name, error)) from error


def _check_folder(name: str | Path) -> None:
    if not Path(name).exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith("."):  # a hub's name is owner/model
            raise VltError(f"{name}: no such folder (and a model on the Hugging Face hub is named owner/model)")
        return
    if not Path(name).is_dir():
        raise VltError(f"{name}: is a file; give the folder that it is in")
    if not (Path(name) / "config.json").is_file():
        raise VltError(f"{name}: holds no config.json; give a folder that `vlt convert` or `save_pretrained` wrote")
    kind = read_json(Path(name) / "config.json").get("model_type")
    if kind != VideoLlamaConfig.model_type:
        raise VltError(f"{name}: is a {kind!r} model, not a Video-LLaMA; `vlt convert --llm` takes language models")


def _cannot_open(name: str | Path, error: Exception) -> str:
    return f"model {str(name)!r} cannot be opened: {first_line(error)}"


def _from_pretrained(name: str | Path, dtype: torch.dtype, options: dict[str, Any]) -> VideoLlama:
    _check_folder(name)
    local = Path(name).exists()
    info: Any
    model: Any
    try:
        model, info = VideoLlama.from_pretrained(
            name,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are reported, below, by name
            local_files_only=local,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise VltError(_cannot_open(name, error)) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[what])):
            raise VltError(f"model {str(name)!r}: {len(keys)} {what.replace('_', ' ')} in its weights, for example {keys[0]}")
    model.tokenizer = tokenizer
    return model
