"""For those who work with captum: video and sound as its interpretable inputs, as its own `ImageMaskInput` is for a
picture, and a run as the model that its classes for language models want.

    inputs = VideoMaskInput(run, mask)                       # mask [frame, height, width] int: which feature each pixel is of
    method = captum.attr.LLMAttribution(captum.attr.ShapleyValues(speaker), speaker.tokenizer)
    found = method.attribute(inputs, target="I hear a bell.", use_cached_outputs=False)
    inputs.format_pixel_attr(found.seq_attr)                           # [frame, height, width]

with `speaker = Speaker(run)`. `use_cached_outputs=False` is needed: with transformers 5 captum 0.9 scores every token but the
first wrongly when it is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import ImageMaskInput
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from vlt.errors import VltError
from vlt.explain.scorer import beside, replaced, scorer
from vlt.probe import language
from vlt.probe.language import Row
from vlt.probe.trace import Trace

_NO_CACHE = "soft tokens are not cached between calls: give use_cached_outputs=False to captum's attribute"


class MaskInput(ImageMaskInput):  # which captum's classes look for; nothing of a picture is taken over
    """A stage of a run, in features that are there or are as in the baseline.

    mask [the stage's axes without the clip's] int: which feature each place is of; None: all are one. baseline: of
    `vlt.attribute`. What goes to the model: {"input_ids", stage}.
    """

    at = ""

    def __init__(self, run: Trace, mask: Tensor | None = None, baseline: str | Tensor = "blank") -> None:
        score = scorer(run, self.at)
        self.value, (self.baseline, _) = score.value, score.without(baseline)
        shape = self._shape()
        mask = torch.zeros(shape, dtype=torch.int64) if mask is None else torch.as_tensor(mask)
        if tuple(mask.shape) != shape or mask.is_floating_point():
            raise VltError(f"a mask at {self.at!r} is of whole numbers {list(shape)}; got {mask.dtype} {list(mask.shape)}")
        found, numbers = torch.unique(mask, return_inverse=True)
        self.mask, self.n_itp_features = numbers.to(self.value.device), len(found)
        self.values = [f"{self.at}_feature_{number}" for number in found.tolist()]
        self.ids = Speaker(run).ids

    def _shape(self) -> tuple[int, ...]:
        """Of the mask: without the clip's axis and the channels'."""
        return (*self.value.shape[1:2], *self.value.shape[3:])

    def to_tensor(self) -> Tensor:
        return torch.ones(1, self.n_itp_features)

    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> Any:
        value = self.value
        if perturbed_tensor is not None:
            there = perturbed_tensor.to(value.device)[0][self.mask] != 0
            value = torch.where(there[None, :, None], value, self.baseline)
        return {"input_ids": self.ids, self.at: value}

    def get_mask_list(self) -> list[Tensor]:
        return [self.mask == number for number in range(self.n_itp_features)]

    def plot_mask_overlay(self, *_: Any, **__: Any) -> Any:
        raise VltError("a mask over time has no one picture; vlt.view.figures.over_frames and over_sound draw heat")

    def format_attr(self, itp_attr: Tensor) -> Tensor:
        return itp_attr

    def format_pixel_attr(self, itp_attr: Tensor) -> Tensor:
        """A feature's value at every place that it holds [..., the mask's axes]. itp_attr: [..., feature]."""
        return itp_attr[..., self.mask.to(itp_attr.device)]


class VideoMaskInput(MaskInput):
    """Frames; mask [frame, height, width]."""

    at = "frames"


class SoundMaskInput(MaskInput):
    """Spectrograms; mask [segment, mel, time]."""

    at = "spectrograms"


class _Tokenizer:
    """The model's, but that texts which are encoded are answers to the run's question: as the model would say them, the
    stop sign included."""

    def __init__(self, run: Trace) -> None:
        self._run, self._own = run, run.model.tokenizer

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(self._run.ids(text))

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._own(*given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class Speaker(nn.Module):
    """A run as captum's language model: (input_ids [1, token], frames and spectrograms, where they have changed) ->
    logits. ids: of the prompt, 0 where a soft token stands; what follows them is the answer, as far as it is said. Edits of
    the run stay in force. tokenizer: for captum, whose targets are answers to the run's question."""

    def __init__(self, run: Trace) -> None:
        super().__init__()
        self.run, self.tokenizer, self.device = run, _Tokenizer(run), run.model.device
        ids: list[int] = []
        for part in run.prompt.parts:
            ids += [0] * run.model.config.num_queries[part] if isinstance(part, str) else list(part)
        self.ids = torch.tensor([ids], device=self.device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, **given: Tensor) -> Any:
        if use_cache:
            raise VltError(_NO_CACHE)
        length = self.ids.shape[1]
        if input_ids.shape[0] != 1 or not torch.equal(input_ids[:, :length], self.ids):
            raise VltError("a Speaker reads one row at a time: its own .ids, and the answer behind them")
        with torch.no_grad():
            run = replaced(self.run, {**beside(self.run, given), **given}) if given else self.run
            (logits,) = language.read([Row(run, tuple(input_ids[0, length:].tolist()))])
            return CausalLMOutput(logits=logits[None].float())  # captum takes log_softmax in the dtype that it is given

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> Any:
        """What captum calls first where it caches."""
        raise VltError(_NO_CACHE)
