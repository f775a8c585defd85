"""The parts, joined: frames and sound -> soft tokens -> the language model. One verb: `run(given, want)`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, Blip2QFormerModel, Blip2VisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Prompt
from vlt.model import stages
from vlt.model.answer import Answers
from vlt.model.config import VideoLlamaConfig
from vlt.model.imagebind import ImageBind


class VideoLlama(Answers, PreTrainedModel):
    """Video-LLaMA as a graph of named stages (`vlt.model.stages` has the table).

    tokenizer: the language model's; `vlt.load` sets it.
    """

    config: VideoLlamaConfig
    config_class = VideoLlamaConfig
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["Blip2EncoderLayer", "Blip2QFormerLayer", "Block", "LlamaDecoderLayer"]

    def __init__(self, config: VideoLlamaConfig) -> None:
        super().__init__(config)
        width, llm_width = config.image_qformer_config.hidden_size, config.text_config.hidden_size
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.vision_model.post_layernorm.eps = 1e-5  # ln_vision is a plain torch LayerNorm, unlike the ViT's own
        self.image_query_tokens = nn.Parameter(torch.empty(1, config.num_image_queries, width))
        self.image_qformer = Blip2QFormerModel._from_config(config.image_qformer_config)
        self.frame_position = nn.Embedding(config.max_frames, width)
        width = config.video_qformer_config.hidden_size
        self.video_query_tokens = nn.Parameter(torch.empty(1, config.num_video_queries, width))
        self.video_qformer = Blip2QFormerModel._from_config(config.video_qformer_config)
        self.video_projection = nn.Linear(width, llm_width)
        if config.has_ears:
            self._build_ears(config, llm_width)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.tokenizer: Any = None
        self.post_init()

    def _build_ears(self, config: VideoLlamaConfig, llm_width: int) -> None:
        width = config.audio_qformer_config.hidden_size
        self.imagebind = ImageBind._from_config(config.imagebind_config)
        self.segment_position = nn.Embedding(config.max_segments, config.imagebind_config.joint_size)
        self.audio_query_tokens = nn.Parameter(torch.empty(1, config.num_audio_queries, width))
        self.audio_qformer = Blip2QFormerModel._from_config(config.audio_qformer_config)
        self.audio_projection = nn.Linear(width, llm_width)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for name in ("image_query_tokens", "video_query_tokens", "audio_query_tokens"):
                if hasattr(self, name):
                    init.normal_(getattr(self, name), std=self.config.initializer_range)
            for name in ("frame_position", "segment_position"):
                if hasattr(self, name):
                    init.normal_(getattr(self, name).weight)  # deviation 1, as in the original: order is told loudly

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """As in transformers; the tokenizer goes into the same folder, so that `vlt.load` finds it."""
        if Path(save_directory).is_file():
            raise VltError(f"{save_directory}: is a file; give a folder to save in")
        super().save_pretrained(save_directory, *args, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @property
    def branches(self) -> tuple[str, ...]:
        """What this model can take in: "video", and "audio" where it has ears."""
        return ("video", "audio") if self.config.has_ears else ("video",)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    # ------------------------------------------------------------------ the graph

    def run(
        self,
        given: Mapping[str, Any],
        want: Iterable[str],
        on_stage: Callable[[str, Any, float], None] | None = None,
    ) -> dict[str, Any]:
        """The wanted stages, from those that are given; only what lies between is computed.

        given: stage name -> tensor with that stage's axes (`vlt stages`), or "clip": a `Clip` or list of them,
        "question": a str or list, "prompt": a `Prompt` or list. Every clip of a batch must give equally shaped tensors.
        want: names of stages. on_stage: called with (name, value, seconds) after each stage that is computed.
        Returns {name: value} for every wanted name. Gradients flow to what is given and asks for them (the parameters
        of a model from `vlt.load` do not).

        Raises `VltError` for an unknown stage, a wrong shape, something missing, or something given that is not used.
        """
        if not isinstance(given, Mapping):
            raise VltError(f"what is given is a dict of stage names and values, not a {type(given).__name__}")
        want = [want] if isinstance(want, str) else list(want or ())
        for name in [*given, *want]:
            stages.stage(name)
        if not want:
            raise VltError("no stage is wanted; `vlt stages` lists all")
        values = {name: self._taken_in(name, value) for name, value in given.items()}
        if isinstance(given.get("question"), str) and "clip" in values:
            values["question"] *= len(values["clip"])  # one question for all
        self._check_batch(values)
        if "prefix" in values and not {"prefix_mask", "prompt", "question"} & set(values) and "logits" in want:
            if len(values["prefix"]) > 1:
                raise VltError("a batch of 'prefix' may hold padding: give 'prefix_mask' or 'prompt' with it")
            values["prefix_mask"] = torch.ones(values["prefix"].shape[:2], dtype=torch.bool, device=self.device)
        self._check_prefix(values)
        for name in stages.plan(values, want, lambda: self._branches_of(values)):
            needs = stages.needs(name, lambda: self._branches_of(values))
            self._synchronize(on_stage is not None)
            start = time.perf_counter()
            extra = {"n_frames": self._frames_given(values)} if name == "prompt" else {}
            values[name] = getattr(self, f"_{name}")(**{need: values[need] for need in needs}, **extra)
            self._synchronize(on_stage is not None)
            if on_stage is not None:
                on_stage(name, values[name], time.perf_counter() - start)
        return {name: values[name] for name in want}

    def forward(self, prompt: Prompt | Sequence[Prompt], **given: Any) -> CausalLMOutput:
        """Logits, and the loss where the prompts carry labels: what a trainer calls. given: as for `run`."""
        prompts = [prompt] if isinstance(prompt, Prompt) else list(prompt)
        out = self.run({"prompt": prompts, **given}, ["prefix", "prefix_mask"])
        labels = self._labels(prompts, out["prefix_mask"])
        result = self._language_model(out["prefix"], out["prefix_mask"], labels=labels)
        return CausalLMOutput(loss=result.loss, logits=result.logits)

    def _taken_in(self, name: str, value: Any) -> Any:
        if name in ("clip", "question", "prompt"):
            kind = {"clip": Clip, "question": str, "prompt": Prompt}[name]
            items = [value] if isinstance(value, kind) or not isinstance(value, Sequence) else list(value)
            if not items:
                raise VltError(f"{name!r} was given as an empty list; it takes a {kind.__name__} or a list of them")
            if wrong := [type(i).__name__ for i in items if not isinstance(i, kind)]:
                raise VltError(f"{name!r} takes a {kind.__name__} or a list of them; got {wrong[0]}")
            return items
        if not isinstance(value, Tensor):
            raise VltError(
                f"stage {name!r} was given as {type(value).__name__}; expected a tensor [{', '.join(stages.stage(name).axes)}]"
            )
        if name in stages.AUDIO:
            self._check_ears(name)
        stages.check(name, value, self.config)
        dtype = torch.bool if name == "prefix_mask" else self.dtype
        return value.to(self.device, dtype)

    def _check_ears(self, what: str) -> None:
        if not self.config.has_ears:
            raise VltError(f"{what!r} needs an audio branch, which this model does not have")

    def _check_batch(self, values: Mapping[str, Any]) -> None:
        sizes = {name: len(value) for name, value in values.items()}
        if len(set(sizes.values())) > 1:
            counts = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise VltError(f"what was given differs in its number of clips ({counts})")

    def _check_prefix(self, values: Mapping[str, Any]) -> None:
        if "prefix" not in values:
            return
        length = values["prefix"].shape[1]
        if "prompt" in values:
            expected = max(self.length(p) for p in values["prompt"])
        else:
            expected = values["prefix_mask"].shape[1] if "prefix_mask" in values else length
        if length != expected:
            raise VltError(f"'prefix' was given with {length} tokens; its prompt or mask has {expected}")

    def _branches_of(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The branches for which the prompts have a place (before there is a prompt: all that the clips could fill)."""
        if "prompt" in values:
            found = {branch for prompt in values["prompt"] for branch in prompt.branches}
        elif "clip" in values:
            each = {self.usable(clip) for clip in values["clip"]}
            if len(each) > 1:
                raise VltError(
                    "these clips do not make one batch, some have no sound or no frames: run them one by one, or use `answer`"
                )
            found = set(each.pop())
        else:
            found = set(self.branches)
        return tuple(branch for branch in ("video", "audio") if branch in found)

    def _frames_given(self, values: Mapping[str, Any]) -> int | None:
        """How many frames are looked at, where that is told by a stage that was given: the prompt names their times."""
        for name in ("frames", "patches", "image_queries", "frame_tokens"):
            if name in values:
                return values[name].shape[1] // (self.config.num_image_queries if name == "frame_tokens" else 1)
        return None

    def _synchronize(self, timing: bool) -> None:
        if timing and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ------------------------------------------------------------------ the stages, each named as in the table

    def _frames(self, clip: list[Clip]) -> Float[Tensor, "clip frame 3 h w"]:
        count, size = self.config.trained_frames, self.config.vision_config.image_size
        return self._stacked([c.frames(count, size) for c in clip], "frames")

    def _spectrograms(self, clip: list[Clip]) -> Float[Tensor, "clip segment 1 mel time"]:
        self._check_ears("spectrograms")
        return self._stacked([c.spectrograms(self.config.max_segments, self.config.coverage) for c in clip], "spectrograms")

    def _stacked(self, tensors: list[Tensor], name: str) -> Tensor:
        if len({t.shape for t in tensors}) > 1:
            counts = ", ".join(str(len(t)) for t in tensors)
            raise VltError(f"these clips do not make one batch of {name} ({counts}): run them one by one, or use `answer`")
        return torch.stack(tensors).to(self.device, self.dtype)

    def _patches(self, frames: Float[Tensor, "clip frame 3 h w"]) -> Float[Tensor, "clip frame patch d"]:
        flat = self.vision_model(rearrange(frames, "clip frame c h w -> (clip frame) c h w")).last_hidden_state
        return flat.unflatten(0, frames.shape[:2])

    def _image_queries(self, patches: Float[Tensor, "clip frame patch d"]) -> Float[Tensor, "clip frame query d2"]:
        flat = self._query(self.image_qformer, self.image_query_tokens, patches.flatten(0, 1))
        return flat.unflatten(0, patches.shape[:2])

    def _frame_tokens(self, image_queries: Float[Tensor, "clip frame query d"]) -> Float[Tensor, "clip token d"]:
        if (count := image_queries.shape[1]) > (trained := self.config.trained_frames):
            warnings.warn(f"{count} frames: the positions of frames {trained} to {count - 1} were never trained", stacklevel=3)
        position = self.frame_position(self._first(image_queries.shape[1])).to(image_queries.device)
        return rearrange(image_queries + position[:, None], "clip frame query d -> clip (frame query) d")

    def _video_queries(self, frame_tokens: Float[Tensor, "clip token d"]) -> Float[Tensor, "clip query d2"]:
        return self._query(self.video_qformer, self.video_query_tokens, frame_tokens)

    def _video_prefix(self, video_queries: Float[Tensor, "clip query d"]) -> Float[Tensor, "clip query d2"]:
        return self.video_projection(video_queries)

    def _audio_features(self, spectrograms: Float[Tensor, "clip segment 1 mel time"]) -> Float[Tensor, "clip segment d"]:
        return self.imagebind.embed(spectrograms, "audio")

    def _segment_tokens(self, audio_features: Float[Tensor, "clip segment d"]) -> Float[Tensor, "clip segment d"]:
        return audio_features + self.segment_position(self._first(audio_features.shape[1])).to(audio_features.device)

    def _first(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _audio_queries(self, segment_tokens: Float[Tensor, "clip segment d"]) -> Float[Tensor, "clip query d2"]:
        return self._query(self.audio_qformer, self.audio_query_tokens, segment_tokens)

    def _audio_prefix(self, audio_queries: Float[Tensor, "clip query d"]) -> Float[Tensor, "clip query d2"]:
        return self.audio_projection(audio_queries)

    def _query(self, qformer: nn.Module, tokens: Tensor, seen: Float[Tensor, "b n d"]) -> Float[Tensor, "b query d2"]:
        queries = tokens.expand(len(seen), -1, -1).to(seen.device)
        return qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    def _prompt(self, clip: list[Clip], question: list[str], n_frames: int | None = None) -> list[Prompt]:
        return [self.prompt(c, q, n_frames=n_frames) for c, q in zip(clip, question, strict=True)]

    def _prefix_mask(self, prompt: list[Prompt]) -> Bool[Tensor, "clip token"]:
        lengths = torch.tensor([self.length(p) for p in prompt], device=self.device)
        longest = int(lengths.max())
        return torch.arange(longest, device=self.device) >= longest - lengths[:, None]  # padding on the left

    def _prefix(
        self,
        prompt: list[Prompt],
        video_prefix: Float[Tensor, "clip video_query d"] | None = None,
        audio_prefix: Float[Tensor, "clip audio_query d"] | None = None,
    ) -> Float[Tensor, "clip token d"]:
        soft: dict[str, Any] = {"video": video_prefix, "audio": audio_prefix}
        place = self.get_input_embeddings().weight
        rows = [
            torch.cat([soft[part][i].to(place) if isinstance(part, str) else self._embedded(part) for part in p.parts])
            for i, p in enumerate(prompt)
        ]
        longest = max(len(row) for row in rows)
        return torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])

    def _logits(self, prefix: Float[Tensor, "clip token d"], prefix_mask: Tensor) -> Float[Tensor, "clip token vocabulary"]:
        return self._language_model(prefix, prefix_mask).logits

    def _embedded(self, ids: Sequence[int]) -> Float[Tensor, "token d"]:
        table: Any = self.get_input_embeddings()
        if ids and max(ids) >= table.num_embeddings:
            raise VltError(
                f"token id {max(ids)}: the language model has {table.num_embeddings}; does its tokenizer belong to it?"
            )
        return table(torch.tensor(ids, dtype=torch.long, device=self.device))

    def _language_model(self, prefix: Tensor, mask: Tensor, labels: Tensor | None = None) -> Any:
        if prefix.shape[1] > (limit := self.config.text_config.max_position_embeddings):
            raise VltError(f"the prefix is {prefix.shape[1]} tokens long; the language model has {limit} positions")
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=prefix, attention_mask=mask.long(), position_ids=positions, labels=labels, use_cache=False
        )

    def length(self, prompt: Prompt) -> int:
        """Positions that a prompt takes in the language model."""
        for branch in prompt.branches:
            if branch not in self.config.num_queries:
                self._check_ears(f"a prompt with a place for {branch}")
        return sum(self.config.num_queries[p] if isinstance(p, str) else len(p) for p in prompt.parts)

    def _labels(self, prompts: Sequence[Prompt], mask: Tensor) -> Tensor | None:
        if all(p.labels is None for p in prompts):
            return None
        labels = torch.full(mask.shape, -100, device=self.device)
        for row, p in zip(labels, prompts, strict=True):
            texts = iter(p.labels or [(-100,) * len(x) for x in p.parts if not isinstance(x, str)])
            flat = [[-100] * self.config.num_queries[x] if isinstance(x, str) else next(texts) for x in p.parts]
            ids = [i for piece in flat for i in piece]
            row[len(row) - len(ids) :] = torch.tensor(ids, device=self.device)
        return labels


AutoModel.register(VideoLlamaConfig, VideoLlama)
