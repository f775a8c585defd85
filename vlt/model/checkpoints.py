"""The original's published files -> one folder that `vlt.load` opens. Strict: every key is used, or skipped for a reason.

Every file's keys are first brought into the original model's own names ("visual_encoder...", "Qformer...", ...), later
files overriding earlier ones in the original's loading order; then one table of names leads from there to ours.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from vlt.errors import VltError, read_json
from vlt.model import published
from vlt.model import sizes as sizing
from vlt.model.published import State
from vlt.model.video_llama import VideoLlama

# Keys that have no place in the model, each with the reason.
SKIPPED: tuple[tuple[str, str], ...] = (
    (r"t5_proj\..*", "BLIP-2's projection to T5: Video-LLaMA has another language model"),
    (r".*\.embeddings\.position_ids", "a constant: positions of words, which the Q-Formers here do not read"),
    (r"llama_model\..*rotary_emb\.inv_freq", "a constant: computed when the language model is built"),
    (r"audio_encoder\.modality_preprocessors\.text\.mask", "a constant: the causal mask"),
    (r"audio_encoder\.[^.]+\.(depth|thermal|imu)\..*", "an ImageBind modality that Video-LLaMA does not have"),
    (r"Qformer\.bert\.embeddings\.(word|position)_embeddings\..*", "the Q-Former's text side: removed in the original"),
    (r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*", "the Q-Former's text side: removed in the original"),
    (r"Qformer\.cls\..*", "the Q-Former's text side: removed in the original"),
    (r"(vision_proj|text_proj|itm_head)\..*|temp", "BLIP-2's first training stage: not part of the model"),
    (r"visual_encoder\.(head|norm|fc_norm)\..*", "EVA-CLIP's head: not part of the image encoder"),
)

# The original's names -> ours, first match wins.
NAMES: tuple[tuple[str, str], ...] = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^(query_tokens)$", r"image_\1"),
    (r"^(video|audio)_query_tokens$", r"\1_query_tokens"),
    (r"^video_frame_position_embedding\.", "frame_position."),
    (r"^audio_position_embedding\.", "segment_position."),
    (r"^llama_proj\.", "video_projection."),
    (r"^audio_llama_proj\.", "audio_projection."),
    (r"^llama_model\.", "language_model."),
    (r"^audio_encoder\.modality_preprocessors\.(\w+)\.cls_token$", r"imagebind.\1.class_token"),
    (r"^audio_encoder\.modality_preprocessors\.audio\.rgbt_stem\.proj\.", "imagebind.audio.stem."),
    (r"^audio_encoder\.modality_preprocessors\.audio\.rgbt_stem\.norm_layer\.", "imagebind.audio.stem_norm."),
    (r"^audio_encoder\.modality_preprocessors\.vision\.rgbt_stem\.proj\.1\.", "imagebind.vision.stem."),
    (r"^audio_encoder\.modality_preprocessors\.text\.token_embedding\.", "imagebind.text.words."),
    (r"^audio_encoder\.modality_preprocessors\.(\w+)\.(?:pos_embedding_helper\.)?pos_embed$", r"imagebind.\1.position"),
    (r"^audio_encoder\.modality_trunks\.vision\.pre_transformer_layer\.0\.", "imagebind.vision.pre_norm."),
    (r"^audio_encoder\.modality_trunks\.(\w+)\.blocks\.(\d+)\.attn\.in_proj_", r"imagebind.\1.blocks.\2.attention.qkv."),
    (r"^audio_encoder\.modality_trunks\.(\w+)\.blocks\.(\d+)\.attn\.out_proj\.", r"imagebind.\1.blocks.\2.attention.out."),
    (r"^audio_encoder\.modality_trunks\.(\w+)\.blocks\.(\d+)\.attn\.", r"imagebind.\1.blocks.\2.attention."),
    (r"^audio_encoder\.modality_trunks\.(\w+)\.blocks\.", r"imagebind.\1.blocks."),
    (r"^audio_encoder\.modality_heads\.text\.proj\.0\.", "imagebind.text.head_norm."),
    (r"^audio_encoder\.modality_heads\.text\.proj\.1\.", "imagebind.text.head."),
    (r"^audio_encoder\.modality_heads\.(\w+)\.0\.", r"imagebind.\1.head_norm."),
    (r"^audio_encoder\.modality_heads\.(\w+)\.2\.", r"imagebind.\1.head."),
    (r"^audio_encoder\.modality_postprocessors\.(\w+)\.1\.log_logit_scale$", r"imagebind.\1.log_scale"),
)

# A Q-Former's inner names, after its prefix.
_QFORMER = re.compile(r"^(video_|audio_|)Qformer\.bert\.(.*)$")


@dataclasses.dataclass
class Report:
    """What became of every key. used: file -> keys; skipped: reason -> keys; overridden: key -> (file, by file)."""

    used: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    overridden: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    unused_sizes: list[str] = dataclasses.field(default_factory=list)
    template: str = ""

    def overrides(self) -> Counter[tuple[str, str]]:
        """(file, by which file) -> how many tensors."""
        return Counter(self.overridden.values())


def convert(
    files: Mapping[str, str | Path | None],
    llm: str | Path,
    out: str | Path,
    sizes: Mapping[str, Any] | None = None,
    template: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Report:
    """Reads the original's files and writes one folder; nothing is left in `out` where anything is wrong.

    files: option of `published.SOURCES` -> path; eva, qformer and vision are needed, audio and imagebind go together, minigpt4
    is optional (a vision branch brings its own projection). llm: folder of a Hugging Face language model with its
    tokenizer. sizes: what the tensors do not tell, see `vlt.model.sizes`. template: "vicuna" or "llama2"; by default
    told from the language model. Weights keep their precision. on_step is called with a word before each file.

    Raises `VltError` naming the file or key. Nothing in a file is executed: only tensors are read (`weights_only`).
    """
    paths = published.check_options(files)
    try:
        return _convert(paths, Path(llm), Path(out).resolve(), sizes or {}, template, on_step)
    except OSError as error:
        raise VltError(f"{out}: cannot be written ({error.strerror or error})") from error


def _convert(
    paths: Mapping[str, Path],
    llm: Path,
    out: Path,
    sizes: Mapping[str, Any],
    template: str | None,
    on_step: Callable[[str], None],
) -> Report:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VltError(f"{out}: exists and is not an empty folder; nothing was written")
    report = Report()
    state: State = {}
    origin: dict[str, str] = {}
    for source in published.SOURCES:
        if (path := paths.get(source.option)) is not None:
            on_step(source.what)
            for key, tensor in published.read(source, path).items():
                _put(state, origin, report, source.prefix + key, tensor, source.option)
    on_step("the language model")
    for key, tensor in published.read_llm(llm).items():
        _put(state, origin, report, f"llama_model.{key}", tensor, "llm")
    tokenizer = published.llm_tokenizer(llm)
    config, report.unused_sizes = sizing.config_of(
        state, published.llm_config(llm), sizes, published.told_template(template, tokenizer)
    )
    report.template = config.template
    on_step("fitting the parts together")
    ours = _renamed(state, origin, config, report)
    on_step("writing")
    _write(ours, config, tokenizer, out)
    return report


def _put(state: State, origin: dict[str, str], report: Report, key: str, tensor: Tensor, file: str) -> None:
    reason = next((why for pattern, why in SKIPPED if re.fullmatch(pattern, key)), None)
    if reason is not None:
        report.skipped.setdefault(reason, []).append(f"{file}: {key}")
        return
    if key in state:
        report.overridden[key] = (origin[key], file)
    state[key], origin[key] = tensor, file


def read_sizes(path: str | Path) -> dict[str, Any]:
    """The contents of a --sizes file."""
    return read_json(Path(path))


def _renamed(state: State, origin: dict[str, str], config: Any, report: Report) -> State:
    with torch.device("meta"):
        expected = VideoLlama(config).state_dict()
    if config.text_config.tie_word_embeddings:
        expected.pop("language_model.lm_head.weight", None)
        _untied(state, report)
    depth = config.vision_config.num_hidden_layers
    ours: State = {}
    stored: set[int] = set()
    for key, tensor in _fused(state).items():
        if (block := re.match(r"visual_encoder\.blocks\.(\d+)\.", key)) and int(block[1]) >= depth:
            report.skipped.setdefault(f"a ViT block beyond the {depth} that the original builds", []).append(f"eva: {key}")
            continue
        if key == sizing.AUDIO_SCALE:
            report.skipped["a constant: the length of audio embeddings, kept in the configuration"] = [f"{origin[key]}: {key}"]
            continue
        name = _our_name(key)
        if name is None or name not in expected:
            near = f" (would be {name!r})" if name else ""
            raise VltError(f"--{origin.get(key, 'eva')}: key {key!r} has no place in the model{near}; nothing was written")
        if name in ours:
            raise VltError(f"--{origin.get(key, 'eva')}: key {key!r} is a second one for {name!r}; nothing was written")
        _check_numbers(key, tensor, origin.get(key, "eva"))
        if name == "vision_model.embeddings.position_embedding" and tensor.shape != expected[name].shape:
            tensor = _resized(tensor, expected[name].shape[1])
        if tensor.shape != expected[name].shape:
            raise VltError(
                f"--{origin.get(key, 'eva')}: {key!r} has shape {list(tensor.shape)}; the model, sized by the other "
                f"tensors and --sizes, has {list(expected[name].shape)} there"
            )
        ours[name] = tensor.clone().contiguous() if tensor.data_ptr() in stored else tensor.contiguous()
        stored.add(tensor.data_ptr())  # two keys may share memory, and a file of tensors holds that only once
        report.used[origin.get(key, "eva")] = report.used.get(origin.get(key, "eva"), 0) + 1
    if missing := sorted(set(expected) - set(ours)):
        raise VltError(f"{len(missing)} of the model's tensors are in none of the files, for example {missing[0]!r}")
    return ours


def _untied(state: State, report: Report) -> None:
    """Where the output layer is the word table, a file may hold it a second time; it must then be the same."""
    head, table = state.pop("llama_model.lm_head.weight", None), state.get("llama_model.model.embed_tokens.weight")
    if head is None:
        return
    if table is None or not torch.equal(head, table):
        raise VltError("--llm: its config.json ties lm_head to embed_tokens, but its files hold two different tensors")
    report.skipped.setdefault("the word table again: the language model ties its output layer to it", []).append(
        "llm: lm_head.weight"
    )


def _check_numbers(key: str, tensor: Tensor, option: str) -> None:
    if not tensor.is_floating_point():
        raise VltError(f"--{option}: {key!r} holds {tensor.dtype}; expected floating point weights")
    if not tensor.isfinite().all():
        raise VltError(f"--{option}: {key!r} holds numbers that are not finite (nan or infinity)")


def _fused(state: State) -> State:
    """The ViT keeps two bias vectors for query and value, and none for key; here the three are one, with zeros."""
    out = {}
    for key, tensor in state.items():
        if key.endswith(".attn.v_bias") and key.replace("v_bias", "q_bias") in state:
            continue
        if key.endswith(".attn.q_bias"):
            value = state.get(key.replace("q_bias", "v_bias"))
            if value is None:
                raise VltError(f"--eva: {key!r} is there and its v_bias is not")
            if key.replace("q_bias", "qkv.bias") in state:
                raise VltError(f"--eva: {key!r} and a qkv.bias are both there; one of them is not used")
            out[key.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        else:
            out[key] = tensor
    return out


def _our_name(key: str) -> str | None:
    if inner := _QFORMER.match(key):
        name = re.sub(r"^embeddings\.LayerNorm\.", "layernorm.", inner[2]).replace(".self.", ".attention.")
        return f"{inner[1] or 'image_'}qformer.{name}"
    for pattern, replacement in NAMES:
        if re.search(pattern, key):
            return re.sub(pattern, replacement, key)
    return None


def _resized(position: Tensor, n_positions: int) -> Tensor:
    """The ViT's position table on another grid, bicubic, the class token's row untouched: as the original loads it."""
    old, new = (round((n - 1) ** 0.5) for n in (position.shape[1], n_positions))
    if old * old + 1 != position.shape[1] or new * new + 1 != n_positions:
        raise VltError(f"--eva: a position table of {position.shape[1]} rows cannot be resized to {n_positions}: not square")
    grid = position[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _write(state: State, config: Any, tokenizer: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.{os.getpid()}")
    work.mkdir()
    try:
        config.architectures = ["VideoLlama"]
        config.save_pretrained(work)
        tokenizer.save_pretrained(work)
        save_torch_state_dict(state, work)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
