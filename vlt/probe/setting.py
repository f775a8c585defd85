"""What all runs of one clip share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from vlt.inputs.clip import Clip
from vlt.model.answer import Encoded
from vlt.model.video_llama import VideoLlama
from vlt.probe.labels import Labels


@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments of `trace` but for the question; the names are its."""

    clip: Clip
    branches: tuple[str, ...]
    n_frames: int | None
    coverage: str
    history: tuple[tuple[str, str], ...]
    system: str | None
    max_new_tokens: int

    def options(self) -> dict[str, Any]:
        """As `trace` takes them."""
        coverage = self.coverage if "audio" in self.branches else None
        rest = {"n_frames": self.n_frames, "coverage": coverage, "history": self.history, "system": self.system}
        return {"branches": self.branches, **rest}

    def labels(self, model: VideoLlama) -> Labels:
        bounds = self.clip.segments(model.config.max_segments, self.coverage) if "audio" in self.branches else []
        return Labels(model.config, self.clip, self.n_frames or model.config.trained_frames, bounds)

    def shown(self, model: VideoLlama, branches: tuple[str, ...]) -> Encoded | None:
        """For the prompt, which needs no numbers: what of the clip it has places for."""
        if not branches:
            return None
        seen = "video" in branches
        sampled = model.sampled(self.clip, self.n_frames) if seen else ""
        return Encoded(self.clip.kind if seen else "sound", sampled, dict.fromkeys(branches, torch.empty(0)))


def usable(options: Mapping[str, Any], model: VideoLlama, clip: Clip) -> dict[str, Any]:
    """Those options of `trace`, asked for with another clip, that this one has a use for."""
    there, out = model.usable(clip), dict(options)
    if out.get("branches") is not None:
        out["branches"] = [b for b in out["branches"] if b in there] or None
    if "video" not in there or clip.kind == "image":
        out.pop("n_frames", None)
    if "audio" not in there:
        out.pop("coverage", None)
    return out
