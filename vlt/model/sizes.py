"""How large the parts in the original's files are: read off their tensors, and what those do not tell, by name.

A tensor does not tell how many attention heads share it, how many of the ViT's blocks are used, or how long a patch
is in time; these have the published value unless `sizes` says otherwise. `sizes` has the keys of KNOWN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.inputs import prompt as prompts
from vlt.model.config import VideoLlamaConfig

# What a tensor cannot tell: key -> published value.
PUBLISHED = {
    "vit.depth": 39,
    "vit.num_heads": 16,
    "bert.num_attention_heads": 12,
    "imagebind.audio_num_heads": 12,
    "imagebind.vision_num_heads": 16,
    "imagebind.text_num_heads": 16,
}

# The logarithm of the length of audio embeddings, which ours keep in the configuration.
AUDIO_SCALE = "audio_encoder.modality_postprocessors.audio.1.log_logit_scale"

# Keys that a sizes file may also hold: those that tensors tell are compared, the others describe a test's inputs.
_TOLD = (
    "vit.embed_dim", "image_size", "bert.hidden_size", "bert.num_hidden_layers", "bert.intermediate_size", "n_query",
    "n_video_query", "n_audio_query", "imagebind.out_embed_dim", "imagebind.audio_embed_dim", "imagebind.audio_num_blocks",
    "imagebind.vision_embed_dim", "imagebind.vision_num_blocks", "imagebind.text_embed_dim", "imagebind.text_num_blocks",
    "ib_side", "ib_vocab", "clips", "llama.hidden_size", "llama.intermediate_size", "llama.num_hidden_layers",
    "llama.num_attention_heads", "llama.vocab_size",
)  # fmt: skip
_IDLE = ("batch", "frames", "vision_clips", "question", "caption", "n_frms", "wave", "real_videos", "durations")
_OTHER_MODALITY = re.compile(r"imagebind\.(depth|thermal|imu)_(embed_dim|num_blocks|num_heads)")


def config_of(
    state: Mapping[str, Tensor], llm: Any, sizes: Mapping[str, Any], template: str | None
) -> tuple[VideoLlamaConfig, list[str]]:
    """The configuration of a state with the original's names, and the keys of `sizes` that nothing was read from.

    Raises `VltError` where a needed tensor is missing, or a size given contradicts the tensors.
    """
    given = _flat(sizes)
    unused = _check_known(given)
    read = _Reader(state, {**PUBLISHED, **given})
    parts: dict[str, Any] = {
        "vision_config": read.vit(),
        "image_qformer_config": read.qformer("Qformer"),
        "video_qformer_config": read.qformer("video_Qformer"),
    }
    image = parts["image_qformer_config"]
    told = {
        "vit.embed_dim": parts["vision_config"]["hidden_size"],
        "image_size": parts["vision_config"]["image_size"],
        **{f"bert.{key}": image[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size")},
        "n_query": read.rows("query_tokens"),
        "n_video_query": read.rows("video_query_tokens"),
        **{key: getattr(llm, key.removeprefix("llama.")) for key in _TOLD if key.startswith("llama.")},
    }
    counts: dict[str, Any] = {"num_image_queries": told["n_query"], "num_video_queries": told["n_video_query"]}
    counts["max_frames"] = read.shape("video_frame_position_embedding.weight")[0]
    if "audio_query_tokens" in state:
        parts |= {"audio_qformer_config": read.qformer("audio_Qformer"), "imagebind_config": read.imagebind()}
        counts["num_audio_queries"] = told["n_audio_query"] = read.rows("audio_query_tokens")
        counts["max_segments"] = told["clips"] = read.shape("audio_position_embedding.weight")[0]
        told |= read.imagebind_told(parts["imagebind_config"])
    for key, value in given.items():
        if key in told and told[key] != value:
            raise VltError(f"--sizes says {key} = {value}, the files say {told[key]}")
    idle = [key for key in PUBLISHED if key.startswith("imagebind.") and "imagebind_config" not in parts]
    unused += [key for key in given if (key in _TOLD and key not in told) or key in idle]
    _check_llm(read, llm)
    style = template or ("llama2" if llm.max_position_embeddings >= 4096 else "vicuna")
    prompts.template(style)
    try:
        return VideoLlamaConfig(**parts, **counts, text_config=llm, template=style), unused
    except ValueError as error:
        raise VltError(f"the files do not fit together: {error}") from error


def _flat(sizes: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in sizes.items():
        if isinstance(value, Mapping) and key in ("vit", "bert", "imagebind", "llama"):
            named = {f"{key}.{inner}": size for inner, size in value.items()}
        else:
            named = {key: value}
        if twice := sorted(set(out) & set(named)):
            raise VltError(f"--sizes gives {twice[0]} twice")
        out |= named
    return out


def _check_known(given: Mapping[str, Any]) -> list[str]:
    known = [*PUBLISHED, *_TOLD, *_IDLE]
    idle = [key for key in given if key in _IDLE or _OTHER_MODALITY.fullmatch(key)]
    for key, value in given.items():
        if key not in known and key not in idle:
            raise VltError(f"--sizes has no key {key!r}; {nearest(key, known)}")
        if key not in idle and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise VltError(f"--sizes: {key} = {value!r}; expected a whole number above 0")
    return idle


def _check_llm(read: _Reader, llm: Any) -> None:
    width = read.shape("llama_proj.weight")[0]
    if width != llm.hidden_size:
        known = {4096: "7B", 5120: "13B"}
        fits = f" ({known[width]})" if width in known else ""
        raise VltError(
            f"--llm is {llm.hidden_size} wide{f' ({known[llm.hidden_size]})' if llm.hidden_size in known else ''}; the "
            f"branches were trained for one of {width}{fits}"
        )


class _Reader:
    def __init__(self, state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> None:
        self.state, self.sizes = state, sizes

    def shape(self, key: str, axes: int = 2) -> tuple[int, ...]:
        if key not in self.state:
            raise VltError(f"none of the files holds {key!r}, which tells a size")
        shape = tuple(self.state[key].shape)
        if len(shape) != axes:
            raise VltError(f"{key!r} has shape {list(shape)}; expected {axes} axes")
        return shape

    def rows(self, key: str) -> int:
        return self.shape(key, 3)[1]

    def layers(self, pattern: str) -> int:
        found = [int(m[1]) for key in self.state if (m := re.match(pattern, key))]
        if not found:
            raise VltError(f"none of the files holds a key like {pattern!r}")
        return max(found) + 1

    def heads(self, key: str, width: int) -> int:
        heads = self.sizes[key]
        if width % heads:
            raise VltError(f"{key} = {heads} does not divide the width {width}: give the right number in --sizes")
        return heads

    def vit(self) -> dict[str, Any]:
        width, _, patch, _ = self.shape("visual_encoder.patch_embed.proj.weight", 4)
        held, depth = self.layers(r"visual_encoder\.blocks\.(\d+)\."), self.sizes["vit.depth"]
        if held < depth:
            raise VltError(f"--eva holds {held} ViT blocks and vit.depth is {depth}: give the number that is used in --sizes")
        side = self.sizes.get("image_size", patch)
        if side % patch:
            raise VltError(f"--sizes: image_size = {side} is no multiple of the ViT's patch of {patch}")
        grid = round((self.rows("visual_encoder.pos_embed") - 1) ** 0.5)
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": self.heads("vit.num_heads", width),
            "intermediate_size": self.shape("visual_encoder.blocks.0.mlp.fc1.weight")[0],
            "patch_size": patch,
            "image_size": self.sizes.get("image_size", grid * patch),
        }

    def qformer(self, name: str) -> dict[str, Any]:
        layer = rf"{name}\.bert\.encoder\.layer\.(\d+)\."
        depth = self.layers(layer)
        crossing = sorted({int(m[1]) for key in self.state if (m := re.match(layer + "crossattention", key))})
        frequency = crossing[1] - crossing[0] if len(crossing) > 1 else max(depth, 1)
        if crossing != list(range(0, depth, frequency)):
            raise VltError(f"{name}: cross-attention in layers {crossing} of {depth}; expected every nth, from 0")
        base = f"{name}.bert.encoder.layer.0"
        width = self.shape(f"{base}.attention.self.query.weight")[0]
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": self.heads("bert.num_attention_heads", width),
            "intermediate_size": self.shape(f"{base}.intermediate_query.dense.weight")[0],
            "cross_attention_frequency": frequency,
            "encoder_hidden_size": self.shape(f"{base}.crossattention.self.key.weight")[1],
        }

    def imagebind(self) -> dict[str, Any]:
        stem = "audio_encoder.modality_preprocessors"
        trunks: dict[str, dict[str, Any]] = {}
        for name in ("audio", "vision", "text"):
            base = f"audio_encoder.modality_trunks.{name}.blocks"
            width = self.shape(f"{base}.0.norm_1.weight", 1)[0]
            trunks[name] = {
                "hidden_size": width,
                "num_hidden_layers": self.layers(rf"audio_encoder\.modality_trunks\.{name}\.blocks\.(\d+)\."),
                "num_attention_heads": self.heads(f"imagebind.{name}_num_heads", width),
                "intermediate_size": self.shape(f"{base}.0.mlp.fc1.weight")[0],
            }
        patch = self.shape(f"{stem}.vision.rgbt_stem.proj.1.weight", 5)[-1]
        side = round((self.rows(f"{stem}.vision.pos_embedding_helper.pos_embed") - 1) ** 0.5) * patch
        trunks["vision"] |= {"patch_size": patch, "image_size": side}
        self.shape(AUDIO_SCALE, 0)
        trunks["audio"]["scale"] = float(self.state[AUDIO_SCALE].exp().clamp(max=100))
        trunks["audio"]["kernel_size"] = self.shape(f"{stem}.audio.rgbt_stem.proj.weight", 4)[-1]
        trunks["text"]["vocab_size"] = self.shape(f"{stem}.text.token_embedding.weight")[0]
        trunks["text"]["num_positions"] = self.rows(f"{stem}.text.pos_embed")
        return {"joint_size": self.shape("audio_encoder.modality_heads.audio.2.weight")[0], **trunks}

    def imagebind_told(self, config: Mapping[str, Any]) -> dict[str, int]:
        told = {"imagebind.out_embed_dim": config["joint_size"]}
        for name in ("audio", "vision", "text"):
            told[f"imagebind.{name}_embed_dim"] = config[name]["hidden_size"]
            told[f"imagebind.{name}_num_blocks"] = config[name]["num_hidden_layers"]
        return told | {"ib_side": config["vision"]["image_size"], "ib_vocab": config["text"]["vocab_size"]}
