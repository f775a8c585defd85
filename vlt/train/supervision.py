"""Which words are learnt: the original's training texts, and for each of their tokens whether the loss counts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlt.errors import VltError
from vlt.inputs.prompt import Prompt, Slot, Text

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A piece of text that is to be predicted. apart: it is tokenised by itself, not with what stands before it."""

    text: str
    apart: bool = False


Lesson = tuple[str | Slot | Learnt, ...]


def caption(text: str, branch: str) -> Lesson:
    """Pre-training: the soft tokens, and right behind them the caption and a line break. No prompt."""
    return (Slot(branch), Learnt(f"{text}\n"))


def description(instruction: str, text: str, branch: str, template: str) -> Lesson:
    """Instruction tuning on a described picture. instruction: has one `<ImageHere>`, where the soft tokens go."""
    before, after = instruction.split("<ImageHere>")
    if template == "llama2":
        return (f"[INST] {before}", Slot(branch), f"{after} [/INST] ", Learnt(f"{text}</s>", apart=True))
    return (f"###Human: {before}", Slot(branch), f"{after} ###Assistant: ", Learnt(f"{text}###", apart=True))


def conversation(turns: Sequence[tuple[Text, str]], template: str) -> Lesson:
    """Instruction tuning on questions and answers; the first question holds the slot.

    Learnt are the answers, and what follows them: the sign that ends an answer. (vicuna: as in the original, also the
    sign and the role that begin one.)
    """
    out: list[str | Slot | Learnt] = []
    if template == "llama2":
        for i, (question, answer) in enumerate(turns):
            system = "<<SYS>>\n \n<</SYS>>\n\n" if i == 0 else ""
            out += ["<s>" if i else "", f"[INST] {system}", *question, " [/INST] ", Learnt(f"{answer} </s>")]
        return tuple(out)
    out.append("\n\n")
    for question, answer in turns:
        out += [Learnt("###"), "Human: ", *question, "\n", Learnt(f"###Assistant: {answer}\n")]
    return (*out, Learnt("###"))


def tokenise(lesson: Lesson, tokenizer: Any, max_tokens: int | None = None, max_learnt: int | None = None) -> Prompt:
    """Token ids and labels. The text between two slots is tokenised in one go, and a token is learnt where its last
    character is: its first may be the space before an answer. tokenizer: a fast one of transformers.

    What is longer is cut off: after max_tokens of text (the begin token counts, soft tokens do not), and after
    max_learnt tokens that are learnt. Raises `VltError` where the cut leaves nothing to learn.
    """
    parts: list[tuple[int, ...] | str] = [() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)]
    labels: list[tuple[int, ...]] = [(IGNORED,) * len(parts[0])]
    left, to_learn = (float("inf") if limit is None else limit for limit in (max_tokens, max_learnt))
    left -= len(parts[0])
    for run in _runs(lesson):
        if isinstance(run, Slot):
            parts.append(run.branch)
            continue
        ids, learnt = _tokenised(run, tokenizer)
        keep = int(min(left, len(ids), np.searchsorted(np.cumsum(learnt), to_learn, side="right")))
        left, to_learn = left - keep, to_learn - sum(learnt[:keep])
        if isinstance(parts[-1], str):
            parts.append(())
            labels.append(())
        parts[-1] = (*parts[-1], *ids[:keep])
        labels[-1] = (*labels[-1], *(i if known else IGNORED for i, known in zip(ids[:keep], learnt[:keep], strict=True)))
    if all(i == IGNORED for piece in labels for i in piece):
        raise VltError("nothing of this text is learnt: what is kept of it holds no answer")
    return Prompt(tuple(parts), tuple(labels))


def _runs(lesson: Lesson) -> list[list[str | Learnt] | Slot]:
    """The lesson, parted at its slots and before what is tokenised apart."""
    out: list[list[str | Learnt] | Slot] = []
    for piece in lesson:
        if isinstance(piece, Slot):
            out.append(piece)
        elif (piece.text if isinstance(piece, Learnt) else piece) != "":
            if not out or isinstance(out[-1], Slot) or (isinstance(piece, Learnt) and piece.apart):
                out.append([])
            out[-1].append(piece)  # type: ignore[union-attr]
    return out


def _tokenised(run: list[str | Learnt], tokenizer: Any) -> tuple[list[int], list[bool]]:
    text = "".join(piece.text if isinstance(piece, Learnt) else piece for piece in run)
    learnt = [isinstance(piece, Learnt) for piece in run for _ in (piece.text if isinstance(piece, Learnt) else piece)]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [learnt[max(start, end - 1)] for start, end in encoded["offset_mapping"]]
