"""The chat around a question: text with places where sound and sight are put in, and its token ids."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vlt.errors import VltError, nearest


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in a prompt's text where a branch's soft tokens are put in: "audio" or "video"."""

    branch: str


Text = tuple[str | Slot, ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """A chat format. It belongs to the language model that was trained on it.

    stop: the text that ends an answer. image_system: the system sentence that the original's demo sets for stills.
    """

    name: str
    stop: str
    image_system: str = "You are able to understand the visual content that the user provides."

    def chat(self, turns: Sequence[tuple[Text, str | None]], system: str = "") -> Text:
        """(user message, answer or None) for every turn -> one text; the last answer is None: it is what is asked for."""
        render = {"vicuna": _vicuna, "llama2": _llama2}[self.name]
        return _joined(render(turns, system))

    def clean(self, answer: str) -> str:
        """What is left of generated text once the stop sign, and a role that was repeated before it, are taken off."""
        return answer.split(self.stop)[0].split("Assistant:")[-1].strip()


TEMPLATES = {t.name: t for t in (Template("vicuna", stop="###"), Template("llama2", stop="</s>"))}


def template(name: str) -> Template:
    if name not in TEMPLATES:
        raise VltError(f"no chat template {name!r}; {nearest(name, TEMPLATES)}")
    return TEMPLATES[name]


def _vicuna(turns: Sequence[tuple[Text, str | None]], system: str) -> list[str | Slot]:
    out: list[str | Slot] = [system, "###"]
    for message, answer in turns:
        out += ["Human: ", *message, "###", "Assistant:"]
        if answer is not None:
            out += [f" {answer}###"]
    return out


def _llama2(turns: Sequence[tuple[Text, str | None]], system: str) -> list[str | Slot]:
    out: list[str | Slot] = []
    for i, (message, answer) in enumerate(turns):
        first = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if i == 0 else ""
        out += ["<s>" if i else "", "[INST] ", first, *message, " [/INST]"]
        if answer is not None:
            out += [f" {answer} </s>"]
    return out


def _joined(parts: Sequence[str | Slot]) -> Text:
    out: list[str | Slot] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif part != "":
            out.append(part)
    return tuple(out)


def frame_times(indices: Sequence[int], fps: float) -> str:
    """The sentence that tells the model when its frames were sampled. It ends with a space, as in the original, which
    divides index by average rate also where the rate varies (`Clip.frame_times` has the true times)."""
    seconds = ", ".join(str(round(int(i) / fps, 1)) for i in indices)
    return f"The video contains {len(indices)} frames sampled at {seconds} seconds. "


def message(question: str, kind: str, branches: Sequence[str], sampled: str = "") -> Text:
    """What the user says about a clip of this kind ("video", "image", "sound"), shown through these branches.

    sampled: the sentence of `frame_times`, which the original adds where there is video and no sound. The runs of
    spaces after the two full stops are the original's (a string continued over source lines) and are real tokens.
    Sound alone and text alone have no prompt in the original: here they are what is left of the others.
    """
    look, listen = "video" in branches, "audio" in branches
    hear: Text = (
        "Close your eyes, open your ears and you imagine only based on the sound that: ",
        Slot("audio"),
        f".{' ' * 17}",
    )
    if look and listen:
        see = ("Close your ears, open your eyes and you see that <Video>", Slot("video"), f"</Video>.{' ' * 18}")
        return (*hear, *see, f"Now answer my question based on what you have just seen and heard. {question}")
    if listen:
        return (*hear, f"Now answer my question based on what you have just heard. {question}")
    if look and kind == "image":
        return ("<Image>", Slot("video"), f"</Image>  {question}")
    if look:
        return ("<Video>", Slot("video"), f"</Video> {sampled} {question}")
    return (question,)


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a Hugging Face tokenizer."""

    bos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids, and between them the names of the branches whose soft tokens stand there.

    parts: runs of ids, or "audio" / "video". labels: for training, one tuple for each run of ids, in order: the ids to
    be predicted there, -100 where nothing is learnt; soft tokens are never predicted.
    """

    parts: tuple[tuple[int, ...] | str, ...]
    labels: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        texts = [part for part in self.parts if not isinstance(part, str)]
        if not any(texts) and not self.branches:
            raise VltError("a prompt must hold at least one token")
        for part in self.branches:
            if part not in ("video", "audio"):
                raise VltError(f"a prompt has places for 'video' and 'audio', not for {part!r}")
        if any(not isinstance(i, int) or i < 0 for text in texts for i in text):
            raise VltError("a prompt's token ids are whole numbers from 0 on")
        if self.labels is not None and [len(t) for t in texts] != [len(t) for t in self.labels]:
            lengths = f"{[len(t) for t in self.labels]}; expected {[len(t) for t in texts]}"
            raise VltError(f"a prompt's labels, one for each id of each run of ids, have lengths {lengths}")

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    def followed_by(self, ids: Sequence[int]) -> Prompt:
        """The same prompt with these ids behind it, as when an answer is fed back; they are not to be learnt."""
        added = tuple(int(i) for i in ids)
        labels = None if self.labels is None else (*self.labels, (-100,) * len(added))
        return Prompt((*self.parts, added), labels)


def tokenise(text: Text, tokenizer: Tokenizer) -> Prompt:
    """Every piece of text between slots on its own, the first with the begin token: the original's way, which gives
    other ids than a whole prompt would (SentencePiece puts its leading space on each piece)."""
    parts: list[tuple[int, ...] | str] = []
    begin = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    for part in text:
        if isinstance(part, Slot):
            parts.append(part.branch)
        elif re.search("[\ud800-\udfff]", part):
            raise VltError(f"{part!r}: holds half a character (a lone surrogate); give valid text")
        else:
            parts.append((begin if not parts else ()) + tuple(tokenizer.encode(part, add_special_tokens=False)))
    return Prompt(tuple(parts))
