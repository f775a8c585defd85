"""From a clip and a question to an answer, and on to the next question about the same clip."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, StopStringCriteria

from vlt.errors import VltError, nearest
from vlt.inputs import prompt as prompts
from vlt.inputs.audio import check_coverage
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Prompt

if TYPE_CHECKING:
    from vlt.model.video_llama import VideoLlama

# The original's settings (conversation_video.py).
MAX_NEW_TOKENS = 300
TOP_P = 0.9
TEMPERATURE = 1.0

# The other options of `answer`.
_ASKING = ("history", "branches", "n_frames", "coverage", "system")
_DRAWING = ("sample", "temperature", "top_p", "max_new_tokens", "seed")

_NO_CLIP = "a clip was given as {}; open it first: vlt.Clip(path)"

# What may be handed through to transformers' `generate`: what neither draws several answers nor undoes the rest.
OPTIONS = ("streamer", "logits_processor", "top_k", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A clip as the language model gets it: soft tokens, so that no encoder runs again for the next question.

    prefix: branch -> soft tokens [query, LLM width]. sampled: the sentence on when its frames were taken.
    """

    kind: str
    sampled: str
    prefix: dict[str, Tensor]

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(self.prefix)


@dataclasses.dataclass(frozen=True)
class Answer:
    """text: the answer, cleaned as in the original. tokens: the new tokens as text, of which `ids` are the ids, the
    stop sign included. ended: "stop", or "length" where the limit of new tokens cut it off. prompt: what was asked."""

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    ended: str
    prompt: Prompt = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


class Answers:
    """What `VideoLlama` does with words. It needs the language model's tokenizer."""

    def usable(self: VideoLlama, clip: Clip) -> tuple[str, ...]:
        """The branches that this clip can fill and this model has."""
        if self.config.has_ears and clip.sound.state == "unreadable":
            raise VltError(
                f"{clip.path}: has sound, but it cannot be used: {clip.sound.problem}; "
                "to go on without it, ask for the branch 'video' only"
            )
        branches = tuple(b for b in clip.branches if b in self.branches)
        if not branches:
            raise VltError(f"{clip.path}: is a {clip.kind}, and this model has no {' or '.join(clip.branches)} branch")
        return branches

    def encode(
        self: VideoLlama,
        clip: Clip,
        branches: Sequence[str] | None = None,
        n_frames: int | None = None,
        coverage: str | None = None,
    ) -> Encoded:
        """Runs the encoders once. branches: of ("video", "audio"), by default all that clip and model have.
        n_frames, coverage: by default those of the configuration (see `Clip.frames`, `Clip.spectrograms`)."""
        given, chosen = self.inputs(clip, branches, n_frames, coverage)
        sampled = self.sampled(clip, n_frames) if "video" in chosen else ""
        with torch.no_grad(), self._evaluating():
            soft = self.run({name: value for name, (value, _) in given.items()}, [f"{branch}_prefix" for branch in chosen])
        return Encoded(clip.kind, sampled, {branch: soft[f"{branch}_prefix"][0] for branch in chosen})

    def inputs(
        self: VideoLlama,
        clip: Clip,
        branches: Sequence[str] | None = None,
        n_frames: int | None = None,
        coverage: str | None = None,
    ) -> tuple[dict[str, tuple[Tensor, float]], tuple[str, ...]]:
        """What the encoders are given: stage -> (tensor of one clip, seconds it took to read), and the branches used."""
        if not isinstance(clip, Clip):
            raise VltError(_NO_CLIP.format(type(clip).__name__))
        if coverage is not None:
            check_coverage(coverage)
        chosen, config = self._chosen(clip, branches), self.config
        for option, value, branch in (("n_frames", n_frames, "video"), ("coverage", coverage, "audio")):
            if value is not None and (branch not in chosen or (option == "n_frames" and clip.kind == "image")):
                raise VltError(f"{option} = {value!r} would change nothing: the {branch} of {clip.path} is not used")
        out = {}
        if "video" in chosen:
            count = config.trained_frames if n_frames is None else n_frames
            if isinstance(count, int) and count > config.max_frames:
                raise VltError(f"{count} frames were asked for; this model has positions for {config.max_frames}")
            start = time.perf_counter()
            frames = clip.frames(count, config.vision_config.image_size)[None]
            out["frames"] = (frames, time.perf_counter() - start)
        if "audio" in chosen:
            start = time.perf_counter()
            spectrograms = clip.spectrograms(config.max_segments, coverage or config.coverage)[None]
            out["spectrograms"] = (spectrograms, time.perf_counter() - start)
        return out, chosen

    def prompt(
        self: VideoLlama,
        clip: Clip | Encoded | None,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        branches: Sequence[str] | None = None,
        n_frames: int | None = None,
        system: str | None = None,
        said: str | None = None,
    ) -> Prompt:
        """The token ids around a question. history: (question, answer) of the turns before it. said: the answer, which
        then ends it. clip None: text only. system: by default none, for stills the sentence of the original's demo."""
        style = prompts.template(self.config.template)
        if not isinstance(question, str) or not question.strip():
            raise VltError(f"a question is a text with something in it, not {question!r}")
        if isinstance(clip, Clip):
            chosen = self._chosen(clip, branches)
            kind, sampled = clip.kind, self.sampled(clip, n_frames) if "video" in chosen else ""
        else:
            self._no_encoding(branches=branches, n_frames=n_frames)
            kind, sampled, chosen = ("text", "", ()) if clip is None else (clip.kind, clip.sampled, clip.branches)
        if system is None:
            system = style.image_system if kind == "image" and chosen else ""
        asked = [*(q for q, _ in history), question]
        answers: list[str | None] = [*(a for _, a in history), said]
        messages = [prompts.message(asked[0], kind, chosen, sampled), *((q,) for q in asked[1:])]
        text = style.chat(list(zip(messages, answers, strict=True)), system)
        return prompts.tokenise(text, self._tokenizer())

    def answer(
        self: VideoLlama,
        clip: Clip | Encoded | Sequence[Clip | Encoded | None] | None,
        question: str | Sequence[str],
        *,
        history: Sequence[tuple[str, str]] = (),
        branches: Sequence[str] | None = None,
        n_frames: int | None = None,
        coverage: str | None = None,
        system: str | None = None,
        **generation: Any,
    ) -> Any:
        """Answers a question about a clip; or questions about clips, as one batch. Greedy answers are those that each
        would get alone.

        clip: opened, or encoded before (`encode`), or None for text only; or a list of these. question: one, or one
        for each clip. history: earlier (question, answer) pairs, the same for all. generation: see `generate_from`.
        Returns an `Answer`, or a list of them.
        """
        many = isinstance(clip, Sequence)
        clips: list[Clip | Encoded | None] = list(clip) if isinstance(clip, Sequence) else [clip]
        questions = (
            list(question) if isinstance(question, Sequence) and not isinstance(question, str) else [question] * len(clips)
        )
        if not clips or len(questions) != len(clips):
            raise VltError(
                f"{len(clips)} clips and {len(questions)} questions were given; give one question, or one for each clip"
            )
        encoded = [self._encoded(c, branches=branches, n_frames=n_frames, coverage=coverage) for c in clips]
        asked = [self.prompt(e, q, history, system=system) for e, q in zip(encoded, questions, strict=True)]
        answers = self.generate_from(asked, [e.prefix if e else {} for e in encoded], **generation)
        return answers if many else answers[0]

    def _encoded(self: VideoLlama, clip: Any, **encoding: Any) -> Encoded | None:
        if isinstance(clip, Clip):
            return self.encode(clip, **encoding)
        if clip is not None and not isinstance(clip, Encoded):
            raise VltError(_NO_CLIP.format(type(clip).__name__))
        self._no_encoding(**encoding)
        return clip

    def _no_encoding(self: VideoLlama, **encoding: Any) -> None:
        if idle := [name for name, value in encoding.items() if value is not None]:
            raise VltError(f"{', '.join(idle)} would change nothing: there is no clip here, or it was encoded before")

    @contextmanager
    def _evaluating(self: VideoLlama) -> Iterator[None]:
        """Without dropout, also in the middle of training."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def chat(self: VideoLlama, clip: Clip, **encoding: Any) -> Chat:
        """A conversation about a clip, which is encoded once. encoding: see `encode`."""
        return Chat(self, self.encode(clip, **encoding))

    def generate_from(
        self: VideoLlama,
        asked: Sequence[Prompt],
        prefixes: Sequence[dict[str, Tensor]],
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Continues prompts, as one left-padded batch.

        prefixes: for each prompt, the soft tokens of the branches that it has a place for. sample: draw from the most
        likely `top_p` (0.9) of the distribution at `temperature` (1.0), from `seed`; else the most likely token each
        time. An answer ends at the template's stop sign. options: of transformers' `generate`, those of OPTIONS.
        """
        self._check_generation(asked, prefixes, sample, {"temperature": temperature, "top_p": top_p, "seed": seed}, options)
        self.check_room(asked, max_new_tokens)
        drawing: dict[str, Any] = {"do_sample": sample}
        if sample:
            drawing |= {"temperature": temperature or TEMPERATURE, "top_p": top_p or TOP_P}
        with torch.no_grad(), self._evaluating(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            given = {"prompt": list(asked), **self.batched(asked, prefixes)}
            out = self.run(given, ["prefix", "prefix_mask"])
            return self.continue_from(asked, out["prefix"], out["prefix_mask"], max_new_tokens, **drawing, **options)

    def check_room(self: VideoLlama, asked: Sequence[Prompt], max_new_tokens: int) -> None:
        """Is there a position for so many new tokens behind the longest of these prompts?"""
        limit, taken = self.config.text_config.max_position_embeddings, max(self.length(p) for p in asked)
        if not 1 <= max_new_tokens <= limit - taken:
            there = f"{taken} of the language model's {limit} positions, which leaves {max(limit - taken, 0)}"
            raise VltError(f"max_new_tokens is {max_new_tokens}; the prompt, earlier turns included, takes {there}")

    @torch.no_grad()
    def continue_from(
        self: VideoLlama, asked: Sequence[Prompt], prefix: Tensor, mask: Tensor, max_new_tokens: int, **options: Any
    ) -> list[Answer]:
        """Continues ready embeddings [clip, token, LLM width], of which `mask` tells the padding; greedily, unless
        options (of transformers' `generate`) say otherwise."""
        stop = StopStringCriteria(self._tokenizer(), [prompts.template(self.config.template).stop])
        new = self.language_model.generate(
            inputs_embeds=prefix,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            stopping_criteria=StoppingCriteriaList([stop]),
            pad_token_id=self._padding(),
            use_cache=True,
            **{"do_sample": False, **options},
        )
        return [self.spoken(p, row.tolist()) for p, row in zip(asked, new, strict=True)]

    def _check_generation(
        self: VideoLlama,
        asked: Sequence[Prompt],
        prefixes: Sequence[dict[str, Tensor]],
        sample: bool,
        drawing: dict[str, float | None],
        options: dict[str, Any],
    ) -> None:
        if len(asked) != len(prefixes) or not asked:
            raise VltError(f"{len(asked)} prompts and {len(prefixes)} sets of soft tokens were given; one for each")
        for prompt, prefix in zip(asked, prefixes, strict=True):
            if set(prompt.branches) != set(prefix):
                have, want = (", ".join(sorted(b)) or "none" for b in (prefix, set(prompt.branches)))
                raise VltError(f"a prompt has places for the soft tokens of: {want}; given were those of: {have}")
        for name in sorted(set(options) - set(OPTIONS)):
            known = [*OPTIONS, *_ASKING, *_DRAWING]
            raise VltError(f"no option {name!r} of answers; {nearest(name, known)}")
        given = {name: value for name, value in drawing.items() if value is not None}
        if given and not sample:
            raise VltError(f"{', '.join(given)} would change nothing without sample=True")
        right = all(type(value) in ((int,) if name == "seed" else (int, float)) for name, value in given.items())
        if not (right and 0 < given.get("temperature", 1.0) < float("inf") and 0 < given.get("top_p", 1.0) <= 1):
            raise VltError(f"temperature must be above 0 and top_p in (0, 1], a seed a whole number; got {given}")

    def batched(self: VideoLlama, asked: Sequence[Prompt], prefixes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One tensor per branch that any prompt has a place for; rows of prompts without that place are never read."""
        out = {}
        for branch in {b for p in asked for b in p.branches}:
            example = next(soft[branch] for soft in prefixes if branch in soft)
            out[f"{branch}_prefix"] = torch.stack([soft.get(branch, torch.zeros_like(example)) for soft in prefixes])
        return out

    def spoken(self: VideoLlama, asked: Prompt, ids: Sequence[int]) -> Answer:
        """What new tokens say, up to the stop sign."""
        style, tokenizer = prompts.template(self.config.template), self._tokenizer()
        ends = self._end_ids()
        stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        kept, ended = list(ids[: stop + 1]), "stop" if stop < len(ids) else "length"
        texts = [tokenizer.decode(kept[:i], skip_special_tokens=False) for i in range(len(kept) + 1)]
        cut = next((i for i, text in enumerate(texts) if style.stop in text), None)
        if cut is not None:
            kept, texts, ended = kept[:cut], texts[: cut + 1], "stop"
        pieces = _pieces(texts)
        text = style.clean(tokenizer.decode(kept, skip_special_tokens=True))
        return Answer(text, pieces, tuple(kept), ended, asked)

    def pieces(self: VideoLlama, ids: Sequence[int]) -> tuple[str, ...]:
        """What each token adds to the text."""
        decode = self._tokenizer().decode
        return _pieces([decode(list(ids[:i]), skip_special_tokens=False) for i in range(len(ids) + 1)])

    def answer_ids(self: VideoLlama, asked: Prompt, text: str, **prompting: Any) -> tuple[int, ...]:
        """The ids that would stand behind a prompt had the model answered with this text, its stop sign included.
        prompting: the arguments of `prompt` that made it."""
        whole = self.prompt(**prompting, said=text)
        before, after = asked.parts[-1], whole.parts[-1]
        if whole.parts[:-1] != asked.parts[:-1] or after[: len(before)] != before or not text.strip():
            raise VltError(f"the answer {text!r} cannot be put behind this prompt: its tokens run into those before it")
        return tuple(int(i) for i in after[len(before) :])

    def _chosen(self: VideoLlama, clip: Clip, branches: Sequence[str] | None) -> tuple[str, ...]:
        if branches is None:
            return self.usable(clip)
        branches = (branches,) if isinstance(branches, str) else branches
        for branch in branches:
            if branch not in ("video", "audio"):
                raise VltError(f"no branch {branch!r}; {nearest(branch, ('video', 'audio'))}")
            if branch not in self.branches:
                raise VltError(f"this model has no {branch} branch")
            if not (clip.n_frames if branch == "video" else clip.sound.state == "there"):
                why = clip.sound.problem or "there is no sound in it" if branch == "audio" else "there is no picture in it"
                raise VltError(f"{clip.path}: has no usable {branch}: {why}")
        if not branches:
            raise VltError("no branch was asked for; give 'video', 'audio' or both, or clip=None for text only")
        return tuple(branches)

    def sampled(self: VideoLlama, clip: Clip, n_frames: int | None = None) -> str:
        """The sentence that tells when this clip's frames are taken ("" for stills and sounds)."""
        if clip.kind != "video" or clip.fps is None:
            return ""
        indices = clip.frame_indices(self.config.trained_frames if n_frames is None else n_frames)
        return prompts.frame_times(indices.tolist(), clip.fps)

    def _tokenizer(self: VideoLlama) -> Any:
        if self.tokenizer is None:
            raise VltError("this model has no tokenizer: open it with `vlt.load`, or set `model.tokenizer`")
        return self.tokenizer

    def _end_ids(self: VideoLlama) -> set[int]:
        end = self.language_model.generation_config.eos_token_id
        return set() if end is None else {end} if isinstance(end, int) else set(end)

    def _padding(self: VideoLlama) -> int:
        ends = self._end_ids()
        return min(ends) if ends else 0


def _pieces(texts: Sequence[str]) -> tuple[str, ...]:
    """From the text after 0, 1, 2, ... tokens, what each token adds. A character of several tokens comes with its last."""
    out, said = [], texts[0]
    for i, text in enumerate(texts[1:], start=1):
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 < len(texts)
        out.append("" if unfinished else text[len(said) :])
        said = said if unfinished else text
    return tuple(out)


class Chat:
    """Several questions about one clip; each sees the ones before it and their answers. turns: (question, answer)."""

    def __init__(self, model: VideoLlama, clip: Encoded) -> None:
        self.model = model
        self.clip = clip
        self.turns: list[tuple[str, str]] = []

    def ask(self, question: str, **generation: Any) -> Answer:
        """generation: see `Answers.generate_from`."""
        answer = self.model.answer(self.clip, question, history=self.turns, **generation)
        self.turns.append((question, answer.text))
        return answer
