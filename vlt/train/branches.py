"""Teaching one branch to speak to a frozen language model: the task of the paper's four phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlt.errors import VltError
from vlt.inputs.prompt import Prompt
from vlt.model.video_llama import VideoLlama
from vlt.train.datasets import Problem
from vlt.train.supervision import IGNORED

PARTS = {
    "video": ("frame_position", "video_query_tokens", "video_qformer", "video_projection"),
    "audio": ("segment_position", "audio_query_tokens", "audio_qformer", "audio_projection"),
}
PATIENCE = 100  # clips after which it is an error that most could not be used


class Branch(nn.Module):
    """One branch learns; all else is frozen. The audio branch is given frames too, and sees them with ImageBind's eye.

    problems: the clips that could not be used so far, by their source. n_clips: how often a clip could.
    """

    def __init__(self, model: VideoLlama, branch: str) -> None:
        super().__init__()
        if branch not in model.branches:
            raise VltError(f"this model has no {branch} branch to be trained")
        self.model, self.branch = model, branch
        self.problems: dict[str, Problem] = {}
        self.n_clips = 0
        model.requires_grad_(False)
        for name in PARTS[branch]:
            part = getattr(model, name).requires_grad_(True)
            if isinstance(part, nn.Module):
                part.float()  # what learns keeps full precision, also beside a frozen model in half
            else:
                part.data = part.data.float()
        if branch == "audio":
            self._check_eye()

    def _check_eye(self) -> None:
        config = self.model.config
        trunk: Any = self.model.imagebind.trunk("vision")
        if trunk.config.image_size != config.vision_config.image_size:
            sides = f"{config.vision_config.image_size} pixels; ImageBind's vision trunk wants {trunk.config.image_size}"
            raise VltError(f"the audio branch is trained on frames, which have {sides}")

    def train(self, mode: bool = True) -> Branch:
        """Only what learns is ever in training mode."""
        super().train(False)
        for name in PARTS[self.branch]:
            if isinstance(part := getattr(self.model, name), nn.Module):
                part.train(mode)
        return self

    def forward(self, groups: Sequence[Mapping[str, Any]], problems: Sequence[Problem] = ()) -> dict[str, Tensor]:
        """groups: each a batch of prompts and one stage of their clips ("frames", or one behind them). The loss is the
        mean over all tokens that are to be learnt."""
        self._take_note(problems, sum(len(group["prompt"]) for group in groups))
        counts = [sum(_n_learnt(p) for p in group["prompt"]) for group in groups]
        loss = sum((self._loss(**group) * n for group, n in zip(groups, counts, strict=True)), self._nothing())
        return {"loss": loss / max(sum(counts), 1)}

    def _loss(self, prompt: Sequence[Prompt], **given: Tensor) -> Tensor:
        if self.branch == "audio" and "frames" in given:
            with torch.no_grad():
                given = {"audio_features": self.model.imagebind.embed(given["frames"].to(self.model.dtype), "vision")}
        return self.model(list(prompt), **given).loss

    def _nothing(self) -> Tensor:
        """No loss, that still reaches all that learns: other machines wait for its gradient."""
        return sum((p.sum() * 0 for p in self.parameters() if p.requires_grad), torch.zeros((), device=self.model.device))

    def _take_note(self, problems: Sequence[Problem], n_clips: int) -> None:
        self.problems |= {problem.source: problem for problem in problems}
        self.n_clips += n_clips
        if len(self.problems) > max(self.n_clips, PATIENCE):
            last = list(self.problems.values())[-1]
            counts = f"{len(self.problems)} clips could not be used, and {self.n_clips} could"
            raise VltError(f"{counts}; the last: {last.source}: {last.reason}")


def _n_learnt(prompt: Prompt) -> int:
    """Tokens that are predicted: what stands first, a token or a soft one, never is."""
    labels = [i for piece in prompt.labels or () for i in piece]
    starts_soft = next((isinstance(part, str) for part in prompt.parts if part), True)
    return sum(i != IGNORED for i in labels[0 if starts_soft else 1 :])
