"""The places inside the model that can be watched and changed, by name: `video_qformer.1.cross`, `language_model.3`.

A block's own name is its residual stream (its output); `.self` and `.cross` are its attentions, `.mlp` what its MLP
adds. The two position tables are places too. All lie on the way of `VideoLlama.run`; names follow that way.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from vlt.errors import VltError, check_type, nearest
from vlt.model import stages
from vlt.model.video_llama import VideoLlama


@dataclasses.dataclass(frozen=True)
class Site:
    """kind: "block", "self", "cross", "mlp" or "table". stage: the one that it helps to compute. inner: the axes that
    are flattened with the clip's. rows, columns: the axis of what looks, and of what is looked at (attentions). width:
    the last axis of its value, and n_width its size. n_heads: of attentions."""

    name: str
    kind: str
    module: nn.Module = dataclasses.field(repr=False, compare=False)
    stage: str
    inner: tuple[str, ...]
    rows: str
    columns: str = ""
    n_width: int = 0
    n_heads: int = 0

    @property
    def width(self) -> str:
        return "head_width" if self.columns else "width"

    @property
    def axes(self) -> tuple[str, ...]:
        """Of its value for one clip: what a hook sees, or for attentions what the heads say."""
        return (*self.inner, self.rows, *(("head",) if self.columns else ()), self.width)

    @property
    def part(self) -> str:
        return self.name.split(".")[0]

    @property
    def layer(self) -> int:
        """Its place in its part; -1 for a table."""
        return next((int(piece) for piece in self.name.split(".") if piece.isdigit()), -1)


def sites(model: VideoLlama) -> dict[str, Site]:
    """All places of this model, in the order of its data."""
    found = _blocks("vision_model", model.vision_model.encoder.layers, "patches", ("frame",), "patch")
    found += _qformer("image_qformer", model.image_qformer, "image_queries", ("frame",), "image_query", "patch")
    found += [_table("frame_position", model.frame_position, "frame_tokens", "frame")]
    found += _qformer("video_qformer", model.video_qformer, "video_queries", (), "video_query", "frame_token")
    if model.config.has_ears:
        trunk: Any = model.imagebind.trunk("audio")
        found += _blocks("imagebind", trunk.blocks, "audio_features", ("segment",), "sound_patch", "sound_patch_seen")
        found += [_table("segment_position", model.segment_position, "segment_tokens", "segment")]
        found += _qformer("audio_qformer", model.audio_qformer, "audio_queries", (), "audio_query", "segment")
    found += _blocks("language_model", model.language_model.get_decoder().layers, "logits", (), "token")
    return {site.name: site for site in found}


def _table(name: str, table: Any, stage: str, rows: str) -> Site:
    return Site(name, "table", table, stage, (), rows, n_width=table.embedding_dim)


def _blocks(part: str, layers: Sequence[Any], stage: str, inner: tuple[str, ...], rows: str, seen: str = "") -> list[Site]:
    out = []
    for i, layer in enumerate(layers):
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
        out += [
            _attention(f"{part}.{i}.self", attention, stage, inner, rows, seen or rows),
            Site(f"{part}.{i}.mlp", "mlp", layer.mlp, stage, inner, rows, n_width=attention.config.hidden_size),
            Site(f"{part}.{i}", "block", layer, stage, inner, rows, n_width=attention.config.hidden_size),
        ]
    return out


def _qformer(part: str, qformer: Any, stage: str, inner: tuple[str, ...], rows: str, seen: str) -> list[Site]:
    out, width = [], qformer.config.hidden_size
    for i, layer in enumerate(qformer.encoder.layer):
        out += [_attention(f"{part}.{i}.self", layer.attention.attention, stage, inner, rows, rows)]
        if layer.has_cross_attention:
            out += [_attention(f"{part}.{i}.cross", layer.crossattention.attention, stage, inner, rows, seen)]
        out += [
            Site(f"{part}.{i}.mlp", "mlp", layer.output_query.dense, stage, inner, rows, n_width=width),
            Site(f"{part}.{i}", "block", layer, stage, inner, rows, n_width=width),
        ]
    return out


def _attention(name: str, module: Any, stage: str, inner: tuple[str, ...], rows: str, seen: str) -> Site:
    heads = module.config.num_attention_heads
    width = getattr(module, "head_dim", module.config.hidden_size // heads)
    return Site(name, name.rsplit(".", 1)[1], module, stage, inner, rows, seen, width, heads)


def match(pattern: str, known: dict[str, Site], kinds: Sequence[str] = (), stage_names: bool = False) -> list[Site]:
    """The sites whose names fit a pattern: `*` stands for one piece of a name, `**` for any number of them, `[8-14]` for
    the layers from 8 to 14, `[12]` and `?` for characters.

    kinds: only these are meant. Raises `VltError` with the nearest names where nothing fits.
    """
    check_type(pattern, str, "the name of a stage or a place")
    wanted = {name: site for name, site in known.items() if not kinds or site.kind in kinds}
    found = [site for name, site in wanted.items() if fits(pattern, name)]
    if not found:
        others = [name for name in known if fits(pattern, name)]
        names = [*wanted, *(stages.TENSOR_STAGES if stage_names else ())]
        if others:
            raise VltError(f"{pattern!r} fits {others[0]!r}, which is not one of {', '.join(kinds)}; {nearest(pattern, names)}")
        raise VltError(f"{pattern!r} fits no place in this model; {nearest(pattern, names)}")
    return found


def fits(pattern: str, name: str) -> bool:
    return _fit(pattern.split("."), name.split("."))


def _fit(pieces: Sequence[str], parts: Sequence[str]) -> bool:
    if not pieces or not parts:
        return not parts and all(piece == "**" for piece in pieces)
    if pieces[0] == "**":
        return any(_fit(pieces[1:], parts[i:]) for i in range(len(parts) + 1))
    if numbers := re.fullmatch(r"\[(\d+)-(\d+)\]", pieces[0]):
        fitting = parts[0].isdigit() and int(numbers[1]) <= int(parts[0]) <= int(numbers[2])
    else:
        fitting = fnmatch.fnmatchcase(parts[0], pieces[0])
    return fitting and _fit(pieces[1:], parts[1:])


def is_pattern(name: str) -> bool:
    check_type(name, str, "the name of a stage or a place")
    return any(sign in name for sign in "*?[")
