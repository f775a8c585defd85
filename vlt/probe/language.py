"""The language model's share: what each of its tokens is, prompts with edited soft tokens, answers and their scores."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vlt.errors import VltError
from vlt.inputs import prompt as prompts
from vlt.inputs.prompt import Prompt
from vlt.model.answer import MAX_NEW_TOKENS, Answer
from vlt.model.video_llama import VideoLlama
from vlt.probe import apply, axes
from vlt.probe.apply import Selection
from vlt.probe.axes import Axis
from vlt.probe.edits import Edit
from vlt.probe.engine import BATCH, Layout, Watch, compute, edited, tap
from vlt.probe.sites import Site

if TYPE_CHECKING:
    from vlt.probe.trace import Trace


_MARK = "\0"  # stands for the question


def token_axis(model: VideoLlama, prompt: Prompt, question: str, answer: Sequence[int], unknown: int = 0) -> Axis:
    """What every position is. answer: ids behind the prompt. unknown: places of an answer that is yet to be made."""
    words: list[str] = []
    kinds: list[str] = []
    queries: list[int] = []
    asked: list[int] = []
    for part in prompt.parts:
        if isinstance(part, str):
            n = model.config.num_queries[part]
            words += [""] * n
            kinds += [part] * n
            queries += list(range(n))
            continue
        pieces = model.pieces(part)
        if part is prompt.parts[-1]:
            asked = [len(words) + i for i in _question(pieces, question, model.config.template)]
        words += pieces
        kinds += ["text"] * len(part)
        queries += [-1] * len(part)
    begin = len(words)
    words += [*model.pieces(answer), *[""] * unknown]
    rest = len(words) - begin
    return axes.token(words, kinds + ["text"] * rest, queries + [-1] * rest, asked, begin)


def _question(pieces: Sequence[str], question: str, template: str) -> list[int]:
    """The pieces of a prompt's last text that hold the question: it stands before what ends every prompt. White space
    is passed over, as tokenizers are free with it."""
    end = prompts.template(template).chat([((_MARK,), None)])[-1]
    assert isinstance(end, str)
    bare = ["".join(piece.split()) for piece in pieces]
    asked, behind = "".join(question.split()), "".join(end.split(_MARK)[1].split())
    start = len("".join(bare)) - len(asked) - len(behind)
    if "".join(bare)[start:] != asked + behind:
        raise VltError(f"the question {question!r} is not found among the prompt's tokens: {' | '.join(pieces)}")
    at, found = 0, []
    for i, piece in enumerate(bare):
        if piece and at < start + len(asked) and at + len(piece) > start:
            found.append(i)
        at += len(piece)
    # What lies between is of it, too: white space, and bytes of a character whose text its last token has.
    first, last = (found[0], found[-1]) if found else (0, -1)
    while first > 0 and not pieces[first - 1]:
        first -= 1
    return list(range(first, last + 1))


def token_of(model: VideoLlama, word: str) -> int:
    """The one token that says a word inside a text."""
    for text in (f" {word.strip()}", word.strip()):
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        ids = [i for i in ids if model.pieces([i])[0].strip()]
        if len(ids) == 1 and model.pieces(ids)[0].strip() == word.strip():
            return int(ids[0])
    raise VltError(f"{word!r} is not one token of this model: {' | '.join(model.pieces(ids))}; words of one token can be read")


@dataclasses.dataclass
class Row:
    """One row for the language model: a run, and the ids that stand behind its prompt. unknown: places of an answer that
    is yet to be made. given: its embeddings [token, LLM width], where they are there already. known: what its tokens are,
    likewise."""

    run: Trace
    ids: tuple[int, ...] = ()
    unknown: int = 0
    given: Tensor | None = None
    known: dataclasses.InitVar[Axis | None] = None

    def __post_init__(self, known: Axis | None) -> None:
        run = self.run
        self.prompt = run.prompt.followed_by(self.ids) if self.ids else run.prompt
        self.axis = known or token_axis(run.model, run.prompt, run.question, self.ids, self.unknown)
        self.begin = self.run.model.length(self.run.prompt)

    def prefix(self) -> Tensor:
        """The embeddings [token, LLM width], with the edits that stand there."""
        run = self.run
        if self.given is not None:
            return self.given
        soft = {f"{branch}_prefix": run.values[f"{branch}_prefix"] for branch in set(self.prompt.branches)}
        value = run.model.run({"prompt": [self.prompt], **soft}, ["prefix"])["prefix"][0]
        for applied in run.applied:
            if applied.stage == "prefix":  # of the prompt; an answer is embedded as it is said
                of = [run.asked, axes.plain("llm_width", value.shape[1])]
                value = torch.cat([edited(run, applied, value[: self.begin], of, "prefix"), value[self.begin :]])
        return value


class Steps(Layout):
    """The language model's batch: rows are padded on the left, and may come step by step.

    start, stop: of the tokens of this step, counted along the longest row.
    """

    def __init__(self, rows: Sequence[Row], longest: int) -> None:
        super().__init__(len(rows))
        self.rows = rows
        self.padding = [longest - row.run.model.length(row.prompt) for row in rows]
        self.start = self.stop = 0

    def inputs(self, model: VideoLlama) -> dict[nn.Module, Callable[[Mapping[str, Any]], None]]:
        return {model.language_model.get_decoder(): self.step}

    def step(self, named: Mapping[str, Any]) -> None:
        inputs = named.get("inputs_embeds")
        inputs = named.get("input_ids") if inputs is None else inputs
        assert inputs is not None
        self.start, self.stop = self.stop, self.stop + inputs.shape[1]

    def axes(self, i: int, run: Trace, site: Site) -> list[Axis]:
        return [self.rows[i].axis, *run.labels.of_site(site)[1:]]

    def select(self, i: int, run: Trace, site: Site, edit: Edit) -> list[Selection]:
        row = self.rows[i]
        selection = apply.select(self.axes(i, run, site), edit.where, repr(site.name))
        tokens = np.arange(row.axis.size) if selection[0] is None else selection[0]
        if "word" in edit.where:  # of the prompt: where an answer is made, its words are not known
            tokens = tokens[tokens < row.begin]
        given = edit.kind in ("mean", "swap", "resample", "noise", "reorder")
        if not len(tokens) or (given and tokens.max() >= row.begin):
            raise VltError(f"{edit}: reaches into the answer, which is yet to be made; name tokens before it, as token='audio'")
        pieces = [tokens]
        if edit.kind == "custom":  # a function is called alike for an answer that is made and for one that is read
            pieces = [tokens[tokens < row.begin], *np.split(later := tokens[tokens >= row.begin], len(later) or 1)]
        local = [piece + self.padding[i] - self.start for piece in pieces]
        there = [piece[(piece >= 0) & (piece < self.stop - self.start)] for piece in local]
        return [[piece, *selection[1:]] for piece in there if len(piece)]

    def places(self, i: int, axis: Axis, index: Any) -> np.ndarray:
        return self.rows[i].axis.find(index) + self.padding[i]


def _batched(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Steps]:
    prefixes = [row.prefix() for row in rows]
    longest = max(len(p) for p in prefixes)
    prefix = torch.stack([nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prefixes])
    lengths = torch.tensor([len(p) for p in prefixes], device=prefix.device)
    mask = torch.arange(longest, device=prefix.device) >= longest - lengths[:, None]
    return prefix, mask, Steps(rows, longest)


def encode(rows: Sequence[Row], batch: int = BATCH) -> None:
    """The soft tokens that these rows have places for."""
    rows = [row for row in rows if row.given is None]
    for branch in ("video", "audio"):
        compute(list({id(r.run): r.run for r in rows if branch in r.prompt.branches}.values()), f"{branch}_prefix", batch)


def read(rows: Sequence[Row], batch: int = BATCH, watch: Watch | None = None) -> list[Tensor]:
    """One pass over each row, all its tokens at once: logits [token, vocabulary]."""
    encode(rows, batch)
    out: list[Tensor] = []
    for at in range(0, len(rows), batch):
        some = rows[at : at + batch]
        prefix, mask, steps = _batched(some)
        start = time.perf_counter()
        with tap([row.run for row in some], "logits", steps, watch):
            logits = some[0].run.model.run({"prefix": prefix, "prefix_mask": mask}, ["logits"])["logits"]
        for row, padding, each in zip(some, steps.padding, logits, strict=True):
            out.append(each[padding:])
            row.run.seconds["logits"] = (time.perf_counter() - start) / len(some)
    return out


def score(rows: Sequence[Row], batch: int = BATCH) -> list[tuple[Tensor, bool]]:
    """Of each row's ids: their log-probabilities [token] float32, one after the other, and whether each was the
    likeliest of all, so that a greedy answer would have begun with just these."""
    out = []
    for row, logits in zip(rows, read(rows, batch), strict=True):
        ids = torch.tensor(row.ids, device=logits.device)
        said = logits[row.begin - 1 : row.begin - 1 + len(ids)].float()
        log = said.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        out.append((log, bool((said.argmax(-1) == ids).all())))
    return out


def generate(runs: Sequence[Trace], max_new_tokens: int = MAX_NEW_TOKENS, batch: int = BATCH) -> list[Answer]:
    """Greedy answers, step by step with the cache, the edits in force at every step."""
    runs[0].model.check_room([run.prompt for run in runs], max_new_tokens)
    rows = [Row(run, unknown=max_new_tokens) for run in runs]
    encode(rows, batch)
    out: list[Answer] = []
    for at in range(0, len(rows), batch):
        some = rows[at : at + batch]
        prefix, mask, steps = _batched(some)
        with tap([row.run for row in some], "logits", steps):
            out += some[0].run.model.continue_from([row.prompt for row in some], prefix, mask, max_new_tokens)
    return out
